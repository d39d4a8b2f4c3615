"""ggml's quantisation, from the libggml-base that llama-cpp-python installs."""
import ctypes
import pathlib

import llama_cpp
import numpy as np

_ggml = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))


class _Traits(ctypes.Structure):  # ggml_type_traits
    _fields_ = [("name", ctypes.c_char_p), ("block", ctypes.c_int64), ("interleaved", ctypes.c_int64),
                ("bytes", ctypes.c_size_t), ("quantized", ctypes.c_bool), ("to_float", ctypes.c_void_p)]


_ggml.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
_ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
_ggml.ggml_quantize_chunk.argtypes = ([ctypes.c_int] + 2 * [ctypes.c_void_p] + 3 * [ctypes.c_int64] + [ctypes.c_void_p])


def bits(number):
    """Bits per weight of the ggml type with this number."""
    traits = _ggml.ggml_get_type_traits(number).contents
    return 8 * traits.bytes / traits.block


def there_and_back(number, weights):
    """float32 `weights` [rows, columns] quantised to the ggml type with this number and converted back."""
    traits = _ggml.ggml_get_type_traits(number).contents
    rows, columns = weights.shape
    blocks = np.zeros(rows * columns // traits.block * traits.bytes, np.uint8)
    _ggml.ggml_quantize_chunk(number, weights.ctypes.data, blocks.ctypes.data, 0, rows, columns, None)
    back = np.empty_like(weights)
    to_float = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(traits.to_float)
    to_float(blocks.ctypes.data, back.ctypes.data, back.size)
    return back
