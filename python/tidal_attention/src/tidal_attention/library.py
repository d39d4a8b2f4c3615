"""include/tidal_attention.h, as ctypes has it."""

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

VERSION = 1
CPU, CUDA = 0, 1
BF16, FLOAT32 = 0, 1
BLOCK = 64


class CreateOptions(ctypes.Structure):
    """tidal_attention_options."""

    _fields_ = [
        ("version", c_int32),
        ("device", c_int32),
        ("device_index", c_int32),
        ("threads", c_int32),
        ("dtype", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("sketch_bits", c_int32),
        ("budget", c_int32),
        ("max_context", c_int32),
        ("max_rows", c_int32),
        ("scale", c_float),
    ]


class CacheView(ctypes.Structure):
    """tidal_attention_cache."""

    _fields_ = [
        ("rows", c_void_p),
        ("tile_stride", c_int64),
        ("sketches", c_void_p),
        ("sketch_stride", c_int64),
        ("blocks", c_int32),
    ]


_FUNCTIONS = {
    "version": (c_int32, []),
    "error": (c_char_p, []),
    "has_device": (c_int32, [c_int32]),
    "sketch_bytes": (c_int64, [c_int32, c_int32]),
    "most_selected": (c_int32, [c_void_p]),
    "create": (c_int32, [POINTER(CreateOptions), POINTER(c_void_p)]),
    "free": (None, [c_void_p]),
    "append": (
        c_int32,
        [c_void_p, POINTER(CacheView), c_int32, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p],
    ),
    "sketch": (c_int32, [c_void_p, POINTER(CacheView), c_int32, c_void_p, c_void_p]),
    "attend": (
        c_int32,
        [c_void_p, POINTER(CacheView), c_int32, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p]
        + [c_int64, c_void_p, c_void_p, c_void_p],
    ),
}


def _path():
    """The library: beside this file, or what TIDAL_ATTENTION_LIBRARY names."""
    named = os.environ.get("TIDAL_ATTENTION_LIBRARY")
    return Path(named) if named else Path(__file__).with_name("libtidal_attention.so")


class Library:
    """The functions without their prefix."""

    def __init__(self):
        path = _path()
        try:
            loaded = ctypes.CDLL(str(path))
        except OSError as error:
            raise ImportError(f"{path}: cannot be loaded ({error}), expected what `pip install` has built") from None
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, f"tidal_attention_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        if self.version() != VERSION:
            raise ImportError(f"{path}: of version {self.version()}, expected {VERSION}")


@cache
def library():
    """Loaded when it is first asked for."""
    return Library()


__all__ = ["BF16", "BLOCK", "CPU", "CUDA", "FLOAT32", "CacheView", "CreateOptions", "byref", "library"]
