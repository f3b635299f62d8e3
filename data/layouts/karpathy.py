"""Karpathy's layout, and NWPU-Captions': {class: [{"filename", "split", "raw", "raw_1", ...}]}.

What transform.py takes anything else for, so that its messages name these keys.
"""


def recognises(content):
    return True


def read(content):
    return content.records()
