"""What a person sees, in both languages. Imports little, so that scripts may print from it."""

from collections.abc import Callable

from model.errors import UserError

Said = Callable[[dict[str, str]], str]  # what is kept to be said again: a function of words
ADDRESS = "address"  # a kind beside those of ImageError: what an address does not give
# Why there is no image, in Chinese, by kind; in English the error says it
KINDS = {
    "unreadable": "不是图像，或是这里读不了的格式：请换成 PNG、JPEG 或 TIFF。",
    "truncated": "文件不完整或已损坏：请重新复制或下载。",
    "too large": "图像太大：请先切成小块，或转成带金字塔的 GeoTIFF（gdal_translate -of COG）。",
    "needs rasterio": "这种文件要先装 rasterio：pip install rasterio。",
    ADDRESS: "这个网址取不到图像：只取公网上的 http(s) 网址，最多 100 MB、60 秒；也可以先下载，"
    "再选择文件。",
}

# Key -> Chinese, English
TABLE = {
    # In the terminal
    "open": ("请在浏览器中打开 {}（Ctrl-C 退出）", "Open {} in a browser (Ctrl-C: leave)"),
    "network": ("局域网地址：{}", "In the local network: {}"),
    "api": ("OpenAI 兼容接口：{}v1，模型名 {}", "OpenAI-compatible API: {}v1, model {}"),
    # The head
    "title": ("用中文与遥感图像对话", "Talk with aerial images"),
    "switch language": ("English", "中文"),
    "checkpoint": ("检查点 {}", "Checkpoint {}"),
    "method": ("{} 微调", "{} fine-tuning"),
    "base": ("基座 {}", "base {}"),
    "untuned": ("未经微调的基座", "a base, not fine-tuned"),
    "tiny": (
        "演示模型：只认识 12 类合成场景（农田、海滩、住宅区、跑道、停车场、储罐、网球场、棒球场、"
        "森林、河流、十字路口、港口），会描述场景、地物、数目和有无；答不了别的问题，"
        "也看不懂真实的遥感图像。"
        "换成自己的检查点：--from_pretrained 检查点文件夹",
        "Demo model: it knows 12 kinds of synthetic scenes only (farmland, beach, houses, runway, "
        "parking lot, storage tanks, tennis, baseball, forest, river, intersection, harbour): it "
        "describes, counts and says what is there, in Chinese; other questions and real images are "
        "beyond it. With your own checkpoint: --from_pretrained FOLDER",
    ),
    "api help": (
        "OpenAI 兼容接口：base_url 是本页地址加 /v1，模型名 {}",
        "OpenAI-compatible API: base_url is this page's address with /v1, model {}",
    ),
    # The image
    "image alt": ("遥感图像 {}，{}×{} 像素", "aerial image {}, {}×{} pixels"),
    "drop": (
        "把遥感图像拖到页面上，或粘贴、选择文件",
        "Drop an aerial image anywhere, paste it, or choose a file",
    ),
    "kinds": (
        "GeoTIFF、16 位、浮点、多波段、PNG、JPEG……",
        "GeoTIFF, 16-bit, float, multi-band, PNG...",
    ),
    "upload": ("选择图像", "Choose an image"),
    "remove": ("移除", "Remove"),
    "address": ("图像网址", "Address of an image"),
    "address hint": ("粘贴 http(s) 网址，回车", "http(s) address, then Enter"),
    "shown": ("显示", "Show"),
    "original": ("原图", "Image"),
    "seen": ("模型所见", "What the model sees"),
    "image hint": (
        "拖选一部分来提问 · 双击放大",
        "Drag to ask about a part · double click to enlarge",
    ),
    "seen note": ("模型所见：{}×{} 像素", "What the model sees: {}×{} pixels"),
    "crop note": ("提问的范围：{}×{} 像素", "Asked about: {}×{} pixels"),
    "tools": ("波段、拉伸、裁剪", "Bands, stretch, crop"),
    "red": ("红", "Red"),
    "green": ("绿", "Green"),
    "blue": ("蓝", "Blue"),
    "stretch": ("拉伸", "Stretch"),
    "box": ("裁剪框：左 上 宽 高（像素）", "Crop box: left top width height (pixels)"),
    "box hint": ("在图上拖出，或输入后回车", "drag over the image, or type and press Enter"),
    "whole": ("整幅图像", "Whole image"),
    "size": ("{}×{} 像素", "{}×{} pixels"),
    "band count": ("{} 个波段", "{} bands"),
    "one band": ("1 个波段", "1 band"),
    "nodata": ("nodata {}", "nodata {}"),
    "no crs": ("无坐标系", "no coordinate system"),
    "metre": ("{} 米/像素", "{} m/pixel"),
    "degree": ("{}°/像素", "{}°/pixel"),
    "other unit": ("{} {}/像素", "{} {}/pixel"),
    "examples": ("示例图像（合成）", "Example images (synthetic)"),
    "refused": ("没有读入", "not read"),
    "file refused": ("{} 没有读入：{}", "{} was not read: {}"),
    "no room": (
        "服务器放图像的空间（{} GB）满了，请过一会儿再试。",
        "The server's space for images ({} GB) is full; try again in a while.",
    ),
    "page full": (
        "这个页面的图像共 {} GB，最多 {} GB：请先移除一些，或换小一点的文件。",
        "The images of this page take {} GB, at most {} GB are kept: remove some, or take a "
        "smaller file.",
    ),
    "too many pixels": (
        "图像有 {}×{} 像素，这里一次最多读 {} 像素：请先裁剪，或到“整景制图”里做整幅，"
        "或让管理员用 --max-image-pixels 调大。",
        "{} x {} pixels, at most {} are read here in one piece: crop it, map all of it in the "
        "page's tab “Scene map”, or start the server with a larger --max-image-pixels",
    ),
    # The dialogue
    "chat": ("对话", "Dialogue"),
    "tuned chat": ("微调后", "Fine-tuned"),
    "base chat": ("微调前（基座）", "Before fine-tuning (base)"),
    "other chat": ("另一张图像", "Another image"),
    "this chat": ("这张图像", "This image"),
    "hello": (
        "放入一张遥感图像，再点“发送”；不放图像就是纯文本对话。",
        "Drop an aerial image, then press Send; without one it is a dialogue in plain text.",
    ),
    "mode": ("比较", "Compare"),
    "alone": ("微调后", "Fine-tuned"),
    "side": ("并排", "Base beside it"),
    "other": ("换一张图", "Another image"),
    "other upload": ("选择另一张", "Choose another"),
    "question": ("问题", "Question"),
    "hint": ("输入问题，回车发送", "Type a question, Enter sends it"),
    "send": ("发送", "Send"),
    "stop": ("停止", "Stop"),
    "clear": ("清空对话", "Clear"),
    "json": ("下载 JSON", "JSON"),
    "markdown": ("下载 Markdown", "Markdown"),
    "undo": ("撤销", "Undo"),
    # Sampling
    "sampling": ("生成参数", "Sampling"),
    "max_length": (
        "最大长度（提示与回答合计，词元）",
        "Maximum length (prompt and answer, tokens)",
    ),
    "max_new_tokens": ("回答最长（词元，0：不另限）", "Longest answer (tokens, 0: no other limit)"),
    "temperature": ("温度（0：贪心）", "Temperature (0: greedy)"),
    "top_p": ("top_p（0：贪心）", "top_p (0: greedy)"),
    "top_k": ("top_k（0：不限，1：贪心）", "top_k (0: no limit, 1: greedy)"),
    "repetition_penalty": ("重复惩罚（1：没有）", "Repetition penalty (1: none)"),
    "seed": ("随机种子（-1：每次不同）", "Seed (-1: another one each time)"),
    "reset": ("恢复默认", "Reset"),
    # Remarks in the dialogue
    "error": ("错误：", "error: "),
    "empty": ("请先输入问题。", "please type a question first"),
    "not text": ("问题必须是文字。", "a question must be text"),
    "surrogates": (
        "问题里有半个字符（不成对的代理项），请重新输入。",
        "the question has half of a character (a lone surrogate); type it again",
    ),
    "too long": (
        "问题有 {} 个字符，最多 {} 个。",
        "the question has {} characters, at most {} are read",
    ),
    "no image": (
        "还没有图像：请先在左边放入一张遥感图像，再发送这个问题；也可以用示例：",
        "There is no image yet: drop one on the left, then send this question; or take an example:",
    ),
    "as text": (
        "图像 {} 没有读入，“{}”要按纯文本（没有图像）来问吗？",
        "The image {} was not read. Ask “{}” as plain text, without an image?",
    ),
    "as text yes": ("按纯文本发送", "Send as plain text"),
    "as text no": ("先不发送", "Do not send"),
    "full queue": (
        "排队的人太多，问题没有发出，约 {} 秒后再试。",
        "too many are waiting; the question was not sent, try again in about {} s",
    ),
    "stopped early": (
        "注意：还没有回答就停止了。",
        "note: stopped before an answer came.",
    ),
    "truncated": (
        "注意：回答到了最大长度就停下了，可在“生成参数”里调大。",
        "note: the answer was stopped by the maximum length; Sampling raises it.",
    ),
    "side later": (
        "注意：从这里开始并排。前面 {} 轮（微调后的回答）基座也读到了。",
        "note: the comparison begins here; the base has read the earlier rounds ({}), which are "
        "answers of the fine-tuned one",
    ),
    "other later": (
        "注意：前面 {} 轮没有问过这张图像，它的对话从这里开始。",
        "note: the earlier rounds ({}) were not about this image; its dialogue begins here",
    ),
    # What did not fit
    "cut": ("注意：超出长度上限，未读入", "note: beyond the length limit and not read: "),
    "rounds": ("最早的 {} 轮对话", "the oldest rounds ({})"),
    "tail": ("问题的末尾", "the end of the question"),
    "and": ("和", " and "),
    "no base": (
        "这个检查点没有可以关掉的适配器，不能并排比较。",
        "this checkpoint has no adapter that could be switched off to compare with its base",
    ),
    "box form": (
        "裁剪框 {}：应为四个整数（左 上 宽 高），并且在图像之内（{}×{}）。",
        "crop box {}: expected four whole numbers (left top width height) in the image ({}×{})",
    ),
    "setting": ("{} 的值 {} 不对，应为数字。", "{} is {}, expected a number"),
    # The state of an answer
    "waiting": ("排队中：前面 {} 人，约 {} 秒", "waiting: {} before you, about {} s"),
    "working": ("……", "..."),
    "generating": ("正在回答……", "answering..."),
    "stopped": ("已停止", "stopped"),
    "tokens": ("{} 词元 · {} 词元/秒 · {} 秒", "{} tokens · {} tokens/s · {} s"),
    "seconds": ("{} 秒", "{} s"),
    "voted": ("已记下评价。", "The vote was noted."),
    # Downloads
    "user": ("问", "Question"),
    "assistant": ("答", "Answer"),
}
WORDS = {english: {key: pair[english] for key, pair in TABLE.items()} for english in (False, True)}


class Word(str):
    """A key of words whose text stands in another text."""


class WordedError(UserError):
    """An error in the language of whoever reads it: a key of words, and what stands in its text."""

    def __init__(self, key: str, *values: object):
        super().__init__(key, *values)
        self.key = key
        self.values = values

    def __str__(self) -> str:
        return self.said(WORDS[True])

    def said(self, words: dict[str, str]) -> str:
        values = (words[value] if isinstance(value, Word) else value for value in self.values)
        return words[self.key].format(*values)


def cut_note(english, rounds, tokens):
    """One line about what did not fit into the length limit.

    rounds, tokens: the numbers of rounds and of the question's tokens, as Assistant.stream reports.
    """
    words = WORDS[english]
    parts = []
    if rounds:
        parts.append(words["rounds"].format(rounds))
    if tokens:
        parts.append(words["tail"])
    return words["cut"] + words["and"].join(parts)
