"""Pickles as Python 2 and its NumPy wrote them: protocol 2, strings of bytes, ``numpy.core.multiarray``."""

import struct

import numpy as np


def string(value):
    content = value.encode("latin1") if isinstance(value, str) else value
    return (
        b"U" + bytes([len(content)]) + content
        if len(content) < 256
        else b"T" + struct.pack("<i", len(content)) + content
    )


def number(value):
    return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)


def array(values: np.ndarray):
    shape = b"".join(number(size) for size in values.shape) + {1: b"\x85", 2: b"\x86"}[values.ndim]
    kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01" + shape + kind + b"\x89"
        + string(values.tobytes()) + b"tb"
    )  # fmt: skip


def one(value):
    if isinstance(value, np.ndarray):
        return array(value)
    if isinstance(value, list):
        return b"](" + b"".join(one(item) for item in value) + b"e"
    return number(value) if isinstance(value, int) else string(value)


def pickled(value: dict):
    return b"\x80\x02}(" + b"".join(string(key) + one(item) for key, item in value.items()) + b"u."
