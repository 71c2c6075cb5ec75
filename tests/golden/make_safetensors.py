#!/usr/bin/env python3
"""tests/golden/mixed.safetensors: what other writers may produce and ours does not. Standard library and numpy.

    /usr/bin/python3 tests/golden/make_safetensors.py

Half-precision tensors, each with its values as F32 beside it, types that Gangline does not read, a scalar, an empty tensor,
more than two dimensions, a header without padding (so that no tensor is aligned), names out of order.
"""
import json
import pathlib
import struct

import numpy


def main():
    f16 = numpy.array([0, -0.0, 1, -2.5, 65504, 6.104e-05, 5.96e-08, numpy.inf, -numpy.inf, 0.333], dtype="<f2").reshape(2, 5)
    f32 = numpy.array([1e-45, 3.4e38, -1.5, numpy.nan], dtype="<f4")
    bf16_bits = numpy.array([0x0000, 0x8000, 0x3F80, 0xC020, 0x0001, 0x7F7F, 0x7F80, 0xFF80], dtype="<u2")
    tensors = [
        ("zebra.f16", "F16", f16),
        ("zebra.f16.f32", "F32", f16.astype("<f4")),
        ("alpha.bf16", "BF16", bf16_bits),
        ("alpha.bf16.f32", "F32", (bf16_bits.astype("<u4") << 16).view("<f4")),
        ("flags", "BOOL", numpy.array([1, 0, 1], dtype="u1")),
        ("position_ids", "I64", numpy.arange(3, dtype="<i8")),
        ("scalar", "F32", numpy.array(7.0, dtype="<f4")),
        ("empty", "F32", numpy.zeros((3, 0), dtype="<f4")),
        ("deep", "F32", numpy.arange(24, dtype="<f4").reshape(2, 1, 3, 1, 4)),
        ("special \u00e9", "F32", f32),
    ]
    header, data = {"__metadata__": {"format": "np", "note": "golden"}}, b""
    for name, dtype, values in tensors:
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + values.nbytes]}
        data += values.tobytes()
    text = json.dumps(header)
    text += " " * (len(text) % 2 == 0)  # an odd length, which 8 does not divide
    (pathlib.Path(__file__).resolve().parent / "mixed.safetensors").write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)


if __name__ == "__main__":
    main()
