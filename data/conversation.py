"""Turns of a dialogue about an image <-> its rounds, [(question, answer), ...]."""

from itertools import chain

from data.faults import Fault, got, has_words
from model.row_forms import FormError, read_form


def turns_of(rounds):
    """[{"role", "content"}, ...]"""
    turns = []
    for question, answer in rounds:
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": answer})
    return turns


def rounds_of(turns):
    """The rounds of the turns of a record, or the Fault of the first that is wrong."""
    if not isinstance(turns, list):
        return got("a list of turns of user and assistant", turns)
    form = form_of({"conversations": turns}, "the image of the record")
    return form if isinstance(form, Fault) else form.rounds


def form_of(row, about=None):
    """What training reads in a row, see read_form; or its Fault."""
    try:
        form = read_form(row, about=about)
    except FormError as error:
        return Fault(error.kind, error.seen)
    for text in chain(*form.rounds):
        if not has_words(text):
            return got("a text in every turn", text)
    return form
