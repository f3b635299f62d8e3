"""The scheduler: the answers of many people are those of one, whoever comes and goes."""

import queue
import threading
import time
from dataclasses import replace

import pytest
import torch
from conftest import write_random
from PIL import Image

from model import Sampling, UserError, load_assistant
from model.rows import Sample
from model.running_batch import GeneratedBatch, Question
from model.visualglm.slot_batch import SlotBatch
from serving.scheduler import QueueFull, Scheduler
from serving.stops import StopText

GREEDY = Sampling(max_new_tokens=12, top_k=1)
COLORS = ("red", "green", "blue", "white")
QUESTIONS = ("有什么？", "这张遥感图像展现了什么场景？", "Describe the image.", "你好")


@pytest.fixture(scope="module")
def talkative(tmp_path_factory, config_file, vocabulary):
    """An assistant that says pieces of the vocabulary and never ends by itself."""
    folder = tmp_path_factory.mktemp("talkative") / "base"
    write_random(folder, config_file, vocabulary, talkative=True)
    return load_assistant(folder, device="cpu")


def image(color):
    return Image.new("RGB", (30, 30), color)


def question(text, shown=None, sampling=GREEDY, history=(), **more):
    return Question(Sample(None, text, None, tuple(history)), shown, sampling, **more)


def mixed(count):
    """Questions of different lengths, with images, without, and with earlier rounds."""
    made = []
    for index in range(count):
        shown = None if index % 4 == 3 else image(COLORS[index % 3])
        history = [("有路吗？", "没有。" * index)] * (index % 3)
        sampling = replace(GREEDY, max_new_tokens=5 + 3 * (index % 5))
        made.append(question(QUESTIONS[index % 4] * (1 + index % 2), shown, sampling, history))
    return made


def alone(assistant, asked):
    """The answer to one question by itself."""
    pieces = assistant.stream(
        asked.sample.question,
        asked.image and asked.image.copy(),
        asked.sample.history,
        asked.sampling,
        asked.english,
    )
    return "".join(pieces)


class Listener:
    """Collects what a scheduler delivers."""

    def __init__(self):
        self.events = queue.Queue()
        self.pieces = []
        self.end = None

    def __call__(self, event):
        self.events.put(event)

    def first(self):
        """Wait for the first event."""
        self._take()
        return self

    def whole(self):
        while self.end is None:
            self._take()
        return "".join(self.pieces)

    def _take(self):
        event = self.events.get(timeout=30)
        self.pieces.append(event.text)
        if event.end:
            self.end = event


def ask(scheduler, asked, **options):
    listener = Listener()
    listener.ticket = scheduler.submit(asked, listener, **options)
    return listener


@pytest.fixture
def scheduler(talkative):
    running = Scheduler(talkative, rows=4)
    yield running
    running.close()


# The same answers


def run_batch(batch, asked, joins):
    """Answers of a batch that question i joins at step joins[i]."""
    answers, keys, step = {}, {}, 0
    while len(batch) or len(keys) < len(asked):
        for index, at in enumerate(joins):
            if at <= step and index not in keys and batch.takes(asked[index]):
                keys[index] = batch.add(asked[index]).key
                answers[keys[index]] = ""
        for advance in batch.step():
            assert advance.error is None
            answers[advance.key] += advance.text
        step += 1
    return [answers[keys[index]] for index in range(len(asked))]


@pytest.mark.parametrize("joins", [[0] * 8, [0, 0, 1, 3, 4, 4, 9, 12], [7, 6, 5, 4, 3, 2, 1, 0]])
def test_rows_that_join_and_leave_answer_as_alone(talkative, joins):
    asked = mixed(8)
    expected = [alone(talkative, one) for one in asked]
    assert len(set(expected)) == 8
    assert run_batch(SlotBatch(talkative.family, 8), asked, joins) == expected


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "bfloat16"}, {"bits": 8}, {"bits": 4}, {"ptuning": 5}], ids=str
)
def test_slots_compute_what_the_decoder_does(wide, options):
    """Logits of rows of different lengths, one of which has been read with what it had said."""
    from model.opening import open_checkpoint
    from model.visualglm.decoder import Decoder
    from model.visualglm.lora import add_ptuning
    from model.visualglm.slots import Slots

    options = dict(options)
    length = options.pop("ptuning", 0)
    family = open_checkpoint(wide, device="cpu", **options)
    network = family.network.eval()
    if length:
        add_ptuning(network, length)
        for prefix in network.mixins["ptuning"].prefix:
            torch.nn.init.normal_(prefix)
    family.prepare_to_answer()
    prompts = [list(range(20, 20 + 30 * count)) for count in (1, 2, 3)]
    said = [[100 + row, 110 + row, 120 + row, 130 + row] for row in range(3)]
    slots = Slots(network)
    with torch.inference_mode():
        expected = []
        for prompt, tokens in zip(prompts, said):
            decoder = Decoder(network, [len(prompt)], 4)
            logits = [decoder.prefill(torch.tensor([prompt]))]
            logits += [decoder.step(torch.tensor([token])) for token in tokens]
            expected.append(torch.cat(logits).float())  # [5, V]

        got = slots.join([prompts[1], prompts[0]], [len(prompts[1]) - 1, len(prompts[0]) - 1])
        compare(got, [expected[1][0], expected[0][0]])
        compare(slots.step([said[1][0], said[0][0]]), [expected[1][1], expected[0][1]])
        resumed = slots.join([prompts[2] + said[2][:1]], [len(prompts[2]) - 1])
        compare(resumed, [expected[2][1]])
        slots.leave(0)  # the last row takes its place
        compare(slots.step([said[2][1], said[0][1]]), [expected[2][2], expected[0][2]])
        slots.leave(1)
        compare(slots.step([said[2][2]]), [expected[2][3]])


def compare(got, expected):
    scale = max(row.abs().max().item() for row in expected)
    for got_row, expected_row in zip(got, expected):
        assert (got_row.float().flatten() - expected_row).abs().max() < 0.03 * scale


def test_a_memory_limit_pauses_rows_and_changes_no_answer(talkative):
    """Rows are read again with what they have said, when there is room."""
    asked = [replace(one, sampling=replace(GREEDY, max_new_tokens=90)) for one in mixed(6)]
    expected = [alone(talkative, one) for one in asked]
    free = SlotBatch(talkative.family, 6)
    slots = free._lane(False).slots
    limit = slots.bytes_for(1, talkative.family.network.config.max_sequence_length)
    assert slots.bytes_for(6, 200) < limit  # the limit must hold one answer: shrink that
    batch = SlotBatch(talkative.family, 6, limit)
    batch.memory = slots.bytes_for(3, 128)
    paused, most = 0, 0
    lane = batch._lane(False)
    real = batch._pause_youngest

    def noted(*arguments):
        nonlocal paused
        paused += 1
        real(*arguments)

    batch._pause_youngest = noted
    real_step = lane.slots.step

    def measured(tokens):
        nonlocal most
        logits = real_step(tokens)
        most = max(most, sum(cache.nbytes for cache in lane.slots.caches))
        return logits

    lane.slots.step = measured
    assert run_batch(batch, asked, [0] * 6) == expected
    assert paused > 0 and 0 < most <= batch.memory
    assert not any(cache.numel() for cache in lane.slots.caches)


def test_a_limit_below_one_answer_is_one_line(talkative):
    with pytest.raises(UserError, match="KV cache of 0 MB: one answer of 2048 tokens takes"):
        SlotBatch(talkative.family, 2, 1000)


@pytest.mark.parametrize("where", ["step", "join"])
def test_out_of_memory_shrinks_the_batch_and_goes_on(talkative, where):
    asked = mixed(5)
    batch = SlotBatch(talkative.family, 5)
    slots = batch._lane(False).slots
    real = getattr(slots, where)
    failures = []

    def limited(rows, *arguments, **options):
        more = len(rows) if where == "join" else 1
        if len(slots.lengths) + more > 3 and len(failures) < 4:
            failures.append(len(slots.lengths))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(rows, *arguments, **options)

    setattr(slots, where, limited)
    assert run_batch(batch, asked, [0] * 5) == [alone(talkative, one) for one in asked]
    assert failures


def test_out_of_memory_of_a_single_row_is_its_own_error(talkative):
    batch = SlotBatch(talkative.family, 2)
    batch._lane(False).slots.step = lambda tokens: torch.empty(1 << 60)
    batch.add(question("你好"))
    batch.step()
    (advance,) = batch.step()
    assert "DefaultCPUAllocator" in str(advance.error) and len(batch) == 0


def test_sampled_answers_depend_on_their_seed_alone(talkative):
    warm = [Sampling(max_new_tokens=12, temperature=2, top_p=1, seed=seed) for seed in (1, 2, 1)]
    asked = [question("有什么？", image("red"), sampling) for sampling in warm]
    first, other, again = run_batch(SlotBatch(talkative.family, 3), asked, [0, 1, 4])
    assert first == again == alone(talkative, asked[0]) != other


def test_tuned_and_untuned_side_by_side(tmp_path, tiny_checkpoint):
    from model.opening import open_checkpoint
    from model.visualglm.lora import lora_layers

    family = open_checkpoint(tiny_checkpoint, device="cpu")
    family.card["method"] = family.add_method(
        {"name": "lora", "rank": 2, "alpha": 4.0, "layers": None, "dropout": 0.0, "parts": []},
        device=torch.device("cpu"),
    )
    torch.manual_seed(3)
    for layer in lora_layers(family.network).values():
        for matrix in layer.matrix_B:
            torch.nn.init.normal_(matrix)
    from model import Assistant

    assistant = Assistant(family, family.prepare_to_answer())
    asked = [question("有什么？", image("red"), untuned=untuned) for untuned in (0, 1, 0, 1)]
    answers = run_batch(SlotBatch(family, 4), asked, [0, 0, 2, 3])
    tuned = alone(assistant, asked[0])
    with assistant.untuned():
        base = alone(assistant, asked[0])
    assert tuned != base and answers == [tuned, base, tuned, base]


def test_the_same_image_of_another_person_is_not_encoded_again(talkative, monkeypatch):
    encoded = []
    real = talkative.family.encode_images
    monkeypatch.setattr(
        talkative.family, "encode_images", lambda images: encoded.append(images) or real(images)
    )
    shown = [Image.new("RGB", (31, 30), color) for color in ("red", "red", "blue", "red")]
    asked = [question("有什么？", one) for one in shown]
    answers = run_batch(SlotBatch(talkative.family, 4), asked, [0, 0, 1, 2])
    assert len(encoded) == 2 and answers[0] == answers[1] == answers[3] != answers[2]


def test_kept_embeddings_are_bounded():
    from model.visualglm.image_cache import ImageCache

    made = []

    def encode(images):
        made.append(len(images))
        return torch.stack([torch.full((4, 8), float(one.getpixel((0, 0))[0])) for one in images])

    cache = ImageCache(max_bytes=3 * 4 * 8 * 4)
    shown = [Image.new("RGB", (2, 2), (value, 0, 0)) for value in range(4)]
    twice = cache.embeddings([shown[0], shown[1], shown[0]], False, encode)
    assert [row[0, 0].item() for row in twice] == [0, 1, 0] and made == [2]
    cache.embeddings(shown[2:], False, encode)  # the one that was used longest ago leaves
    assert cache.embeddings([shown[0]], False, encode)[0, 0, 0] == 0 and made == [2, 2]
    assert cache.embeddings([shown[1]], False, encode)[0, 0, 0] == 1 and made == [2, 2, 1]
    cache.embeddings([shown[0]], True, encode)
    assert made == [2, 2, 1, 1] and cache._bytes <= cache.max_bytes


# The scheduler


def test_many_at_once_get_their_own_answers(talkative, scheduler):
    asked = mixed(12)
    listeners = [ask(scheduler, one, client=str(index % 3)) for index, one in enumerate(asked)]
    assert [listener.whole() for listener in listeners] == [alone(talkative, one) for one in asked]
    assert {listener.end.end for listener in listeners} == {"length"}
    assert [listener.ticket.tokens for listener in listeners] == [
        one.sampling.max_new_tokens for one in asked
    ]
    assert scheduler.load == (0, 0)


ENDLESS = question("你好", None, Sampling(top_k=1))


def test_one_client_with_many_questions_does_not_keep_others_waiting(talkative):
    scheduler = Scheduler(talkative, rows=1)
    try:
        first = ask(scheduler, ENDLESS, client="a").first()
        order = []
        for client in "aaabbc":
            scheduler.submit(
                question("你好", None, replace(GREEDY, max_new_tokens=1)),
                lambda event, client=client: event.end and order.append(client),
                client=client,
            )
        last = ask(scheduler, question("你好"), client="d")
        ahead, seconds = scheduler.place(last.ticket)
        assert seconds > 0
        scheduler.cancel(first.ticket)
        last.whole()
        before = len(order)
        while len(order) < 6:
            time.sleep(0.01)
    finally:
        scheduler.close()
    assert order == list("bcabaa") or order == list("abcaba"), order
    assert before == ahead


def test_who_is_gone_is_dropped_at_the_next_token(scheduler, talkative):
    gone, waiting = [ask(scheduler, ENDLESS, client="a").first() for _ in range(4)], []
    waiting = ask(scheduler, ENDLESS)
    stays = ask(scheduler, question("你好"))
    assert scheduler.place(waiting.ticket)[0] == 0 and scheduler.place(gone[0].ticket) is None
    scheduler.cancel(waiting.ticket)
    for listener in gone:
        scheduler.cancel(listener.ticket)
    for listener in [*gone, waiting]:
        listener.whole()
        assert listener.end.end == "cancelled"
    assert stays.whole() == alone(talkative, question("你好"))


def test_a_client_that_cannot_be_reached_ends_its_answer_only(scheduler, talkative):
    def broken(event):
        raise ConnectionError

    scheduler.submit(ENDLESS, broken)
    assert ask(scheduler, question("你好")).whole() == alone(talkative, question("你好"))
    end = time.monotonic() + 10
    while scheduler.load != (0, 0) and time.monotonic() < end:
        time.sleep(0.01)
    assert scheduler.load == (0, 0)


def test_an_answer_that_takes_too_long_ends(talkative):
    scheduler = Scheduler(talkative, rows=2, seconds=0.5)
    try:
        listener = ask(scheduler, ENDLESS)
        begun = listener.whole()
    finally:
        scheduler.close()
    expected = alone(talkative, replace(ENDLESS, sampling=Sampling(top_k=1, max_new_tokens=60)))
    assert listener.end.end == "time" and begun and begun[:20] == expected[: len(begun[:20])]


def test_a_full_queue_says_when_to_come_again(talkative):
    scheduler = Scheduler(talkative, rows=1, waiting=2)
    try:
        ask(scheduler, ENDLESS).first()
        ask(scheduler, ENDLESS), ask(scheduler, ENDLESS)
        with pytest.raises(QueueFull, match="2 questions are waiting") as full:
            ask(scheduler, ENDLESS)
    finally:
        scheduler.close()
    assert full.value.seconds > 0


def seconds_of_a_full_queue(scheduler):
    ask(scheduler, ENDLESS)
    with pytest.raises(QueueFull) as full:
        ask(scheduler, ENDLESS)
    return full.value.seconds


def test_a_wait_is_as_long_as_answers_have_taken(talkative):
    scheduler = Scheduler(talkative, rows=1, waiting=1)
    try:
        began = time.monotonic()
        ask(scheduler, question("你好")).whole()
        taken = time.monotonic() - began
        ask(scheduler, ENDLESS).first()
        # The answer under way, and the one that waits
        assert seconds_of_a_full_queue(scheduler) == pytest.approx(2 * taken, rel=0.5)
    finally:
        scheduler.close()


def test_before_an_answer_has_ended_a_wait_is_as_long_as_one_has_lasted(talkative, monkeypatch):
    scheduler = Scheduler(talkative, rows=1, waiting=1)
    now = time.monotonic
    try:
        ask(scheduler, ENDLESS).first()
        monkeypatch.setattr(time, "monotonic", lambda: now() + 60)
        assert seconds_of_a_full_queue(scheduler) == pytest.approx(2 * 60, rel=0.2)
    finally:
        scheduler.close()


def test_closing_ends_every_answer(talkative):
    scheduler = Scheduler(talkative, rows=1)
    listeners = [ask(scheduler, ENDLESS).first(), ask(scheduler, ENDLESS)]
    scheduler.close()
    for listener in listeners:
        listener.whole()
        assert listener.end.end == "cancelled"
    assert threading.active_count() and not scheduler._thread.is_alive()


def test_errors_of_one_question_stay_with_it(scheduler, talkative, monkeypatch):
    real = talkative.family.encode_images

    def some(images):
        if images[0].size == (7, 7):
            raise RuntimeError("a layer\nfailed")
        return real(images)

    monkeypatch.setattr(talkative.family, "encode_images", some)
    bad = ask(scheduler, question("有什么？", Image.new("RGB", (7, 7))))
    small = ask(scheduler, question("有什么？", None, replace(GREEDY, max_length=4)))
    good = ask(scheduler, question("有什么？"))
    assert good.whole() == alone(talkative, question("有什么？"))
    assert bad.whole() == small.whole() == ""
    assert (bad.end.error, bad.end.is_users) == ("a layer failed", False)
    assert "too small" in small.end.error and small.end.is_users


def test_an_error_of_the_whole_step_ends_those_under_way_and_no_later_ones(scheduler, talkative):
    real = scheduler._batch.step
    scheduler._batch.step = lambda: 1 / 0
    failed = ask(scheduler, question("你好"))
    failed.whole()
    scheduler._batch.step = real
    assert failed.end.error == "division by zero"
    assert ask(scheduler, question("你好")).whole() == alone(talkative, question("你好"))


def test_stop_sequences_end_an_answer_before_them(scheduler, talkative):
    text = alone(talkative, question("你好"))
    stop = text[4:6]
    listener = ask(scheduler, question("你好"), stop=["不会出现的", stop])
    assert listener.whole() == text[: text.index(stop)]
    assert listener.end.end == "stop" and scheduler.load == (0, 0)


def fed(stops, text, size):
    stop, shown = StopText(stops), ""
    for start in range(0, len(text), size):
        piece, stopped = stop.feed(text[start : start + size])
        shown += piece
        if stopped:
            return shown
    return shown + stop.rest()


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    "stops, text, expected",
    [
        ([], "abc", "abc"),
        (["ab"], "aab", "a"),
        (["aab"], "aaab", "a"),
        (["xyz", "b"], "axyb", "axy"),
        (["###"], "a##b##", "a##b##"),
        (["\n"], "行\n另一行", "行"),
        (["abcd", "bc"], "zabce", "za"),
    ],
)
def test_stop_text(stops, text, expected, size):
    assert fed(stops, text, size) == expected


# Families whose rows begin together


def test_batches_formed_at_arrival(talkative):
    asked = [question("有什么？", image(color)) for color in COLORS[:3]]
    batch = GeneratedBatch(talkative.family, 3)
    assert run_batch(batch, asked, [0, 0, 1]) == [alone(talkative, one) for one in asked]
    other = question("你好", None, replace(GREEDY, seed=1))
    keys = [batch.add(asked[0]).key, batch.add(asked[1]).key]
    assert not batch.takes(other) and batch.takes(asked[2])
    batch.step()
    assert not batch.takes(asked[2])
    batch.remove(keys[0])
    assert [advance.key for advance in batch.step()] == keys[1:]
    batch.remove(keys[1])
    assert len(batch) == 0 and batch.takes(other)


def test_batches_formed_at_arrival_count_as_those_that_rows_join(talkative):
    """Tokens of prompts and answers, and what does not fit of a dialogue."""
    rounds = [("有什么？", "有树。" * 40)] * 3
    short = replace(GREEDY, max_new_tokens=5, max_length=150)
    for asked in (
        question("有什么？", image(COLORS[0])),
        question("你好", None, replace(GREEDY, max_new_tokens=3)),
        question("有船吗？", image(COLORS[1]), short, history=rounds),
    ):
        counted = []
        for batch in (GeneratedBatch(talkative.family, 1), talkative.family.open_batch(1)):
            joined = batch.add(asked)
            tokens = 0
            while len(batch):
                for advance in batch.step():
                    tokens = advance.tokens
            counted.append((joined.prompt_tokens, joined.cut, tokens))
        assert counted[0] == counted[1]
        assert counted[0][0] > 1 and 0 < counted[0][2] <= asked.sampling.max_new_tokens
        assert bool(counted[0][1][0]) == bool(asked.sample.history)


def test_a_family_without_a_batch_of_its_own_is_served(talkative, monkeypatch):
    family = talkative.family
    monkeypatch.setattr(family, "open_batch", lambda rows, memory: GeneratedBatch(family, rows))
    scheduler = Scheduler(talkative, rows=2)
    try:
        asked = mixed(5)
        listeners = [ask(scheduler, one) for one in asked]
        assert [one.whole() for one in listeners] == [alone(talkative, one) for one in asked]
    finally:
        scheduler.close()
