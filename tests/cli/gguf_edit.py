"""Reads a GGUF file and writes changed copies of it: keys, tensors, parts. Whole files in memory."""

import struct

U16, U32, I32, F32, BOOL, TEXT, ARRAY = 2, 4, 5, 6, 7, 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def _padding(size, alignment):
    return -size % alignment


class Gguf:
    """`keys`: name to (type, bytes of the value); `tensors`: lists [name, sizes, type, bytes]."""

    def __init__(self, path=None):
        self.keys, self.tensors = {}, []
        if path:
            with open(path, "rb") as file:
                self._read(file.read())

    def _read(self, data):
        at = 4

        def take(form):
            nonlocal at
            (value,) = struct.unpack_from("<" + form, data, at)
            at += struct.calcsize(form)
            return value

        def skip(kind):
            nonlocal at
            if kind == TEXT:
                length = take("Q")
                at += length
            elif kind == ARRAY:
                inner, count = take("I"), take("Q")
                if inner == TEXT:
                    for _ in range(count):
                        skip(TEXT)
                else:
                    at += count * struct.calcsize(_FORMATS[inner])
            else:
                at += struct.calcsize(_FORMATS[kind])

        def text():
            nonlocal at
            length = take("Q")
            at += length
            return data[at - length : at].decode()

        take("I")
        tensors, keys = take("Q"), take("Q")
        for _ in range(keys):
            name, kind = text(), take("I")
            start = at
            skip(kind)
            self.keys[name] = (kind, data[start:at])
        headers = [(text(), [take("Q") for _ in range(take("I"))], take("I"), take("Q")) for _ in range(tensors)]
        start = at + _padding(at, 32)
        ends = sorted(offset for *_, offset in headers)[1:] + [len(data) - start]
        for (name, sizes, kind, offset), end in zip(sorted(headers, key=lambda header: header[3]), ends):
            self.tensors.append([name, sizes, kind, data[start + offset : start + end]])

    def set(self, name, kind, value):
        if kind == TEXT:
            encoded = value if isinstance(value, bytes) else value.encode()
            self.keys[name] = (kind, struct.pack("<Q", len(encoded)) + encoded)
        else:
            self.keys[name] = (kind, struct.pack("<" + _FORMATS[kind], value))

    def write(self, path, tensors=None, keys=None):
        tensors = self.tensors if tensors is None else tensors
        keys = self.keys if keys is None else keys

        def text(value):
            return struct.pack("<Q", len(value.encode())) + value.encode()

        header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
        for name, (kind, value) in keys.items():
            header += text(name) + struct.pack("<I", kind) + value
        offset = 0
        for name, sizes, kind, data in tensors:
            header += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
            offset += len(data) + _padding(len(data), 32)
        with open(path, "wb") as file:
            file.write(header + bytes(_padding(len(header), 32)))
            for *_, data in tensors:
                file.write(data)
                file.write(bytes(_padding(len(data), 32)))

    def write_parts(self, prefix, count):
        """As llama.cpp's gguf-split does; returns the parts' paths."""
        each = -(-len(self.tensors) // count)
        paths = []
        for part in range(count):
            keys = dict(self.keys) if part == 0 else {}
            keys["split.no"] = (U16, struct.pack("<H", part))
            keys["split.count"] = (U16, struct.pack("<H", count))
            keys["split.tensors.count"] = (I32, struct.pack("<i", len(self.tensors)))
            paths.append(f"{prefix}-{part + 1:05}-of-{count:05}.gguf")
            self.write(paths[-1], self.tensors[part * each : (part + 1) * each], keys)
        return paths
