"""The frame of a `torch.save` archive: all of the zip that is not tensor data, computed without a file.

Owns the structure of the zip, byte for byte as torch's writer makes it. Members are stored without compression. Padding
in the local header puts their content at a multiple of 64 bytes from the beginning of the archive. Sizes and checksums
are in a descriptor behind the content. Fields of zip64 stand where 32 bits do not suffice, its end record always.
Readers rely on it: with `torch.utils.serialization.config.load.calculate_storage_offsets` torch computes where a member
is from the sizes of those before it.

The data of tensors is a hole, and its checksum says 0, as it does where torch saves without data. Torch checks no
checksum when it loads (`torch.serialization.set_crc32_options`); other programs that unpack zips may complain.

Formats: `caffe2/serialize/inline_container.cc` (`getPadding`, `getRecordOffsetNoRead`) and `third_party/miniz` of
PyTorch, and PKWARE's APPNOTE.TXT.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

from distconv.formats.frame import Frame

ALIGNMENT = 64
_MOST_16, _MOST_32 = 0xFFFF, 0xFFFFFFFF
# Flags: names are UTF-8; a descriptor follows the content.
_UTF8, _DESCRIPTOR = 1 << 11, 1 << 3
_LOCAL = struct.Struct("<4s2xH18xHH")  # signature, flags, lengths of the name and of the extra fields; else zeros
_ENTRY = struct.Struct("<4s4xH6xIIIHH10xI")  # signature, flags, checksum, two sizes, lengths as above, local header
_ZIP64_END = struct.Struct("<4sQHH8xQQQQ")  # signature, bytes to come, versions, members twice, directory's size, start
_ZIP64_LOCATOR = struct.Struct("<4s4xQI")  # signature, start of the record above, number of disks
_END = struct.Struct("<4s4xHHII2x")  # signature, and as in the zip64 end
_VERSIONS = (0x031E, 45)


def zip_frame(members: Iterable[tuple[str, bytes | int]]) -> Frame:
    """The frame of an archive of members by name, whose content is bytes, or a hole of a size in bytes.

    Holes have the order of the members.
    """
    pieces: list[tuple[int, bytes]] = []
    holes: list[int] = []
    entries: list[bytes] = []
    piece, start, end = bytearray(), 0, 0
    for name, content in members:
        data, size = (b"", content) if isinstance(content, int) else (content, len(content))
        checksum, header, encoded = zlib.crc32(data), end, name.encode()
        piece += _local_header(encoded, size, header) + data
        if isinstance(content, int):
            holes.append(start + len(piece))
            if size:
                pieces.append((start, bytes(piece)))
                piece, start = bytearray(), holes[-1] + size
        piece += _descriptor(size, checksum, header)
        end = start + len(piece)
        entries.append(_entry(encoded, size, checksum, header))
    directory = b"".join(entries)
    piece += directory + _end_records(len(entries), len(directory), end)
    pieces.append((start, bytes(piece)))
    return Frame(pieces=pieces, holes=holes, nbytes=start + len(piece))


def _local_header(name: bytes, size: int, header: int) -> bytes:
    """The header at offset `header`, which ends where the content begins."""
    # As torch's writer does it: the size of what is stored is in the descriptor and the directory only.
    extra = _zip64(*((size, 0) if size >= _MOST_32 else ()), *((header,) if header >= _MOST_32 else ()))
    padding = -(header + _LOCAL.size + len(name) + len(extra) + 4) % ALIGNMENT
    extra += b"FB" + struct.pack("<H", padding) + b"Z" * padding
    return _LOCAL.pack(b"PK\x03\x04", _flags(size), len(name), len(extra)) + name + extra


def _descriptor(size: int, checksum: int, header: int) -> bytes:
    if not size:
        return b""
    wide = size >= _MOST_32 or header >= _MOST_32
    return struct.pack("<4sIQQ" if wide else "<4sIII", b"PK\x07\x08", checksum, size, size)


def _entry(name: bytes, size: int, checksum: int, header: int) -> bytes:
    """The entry of the central directory."""
    extra = _zip64(*((size, size) if size >= _MOST_32 else ()), *((header,) if header >= _MOST_32 else ()))
    stated = min(size, _MOST_32)
    return (
        _ENTRY.pack(b"PK\x01\x02", _flags(size), checksum, stated, stated, len(name), len(extra), min(header, _MOST_32))
        + name
        + extra
    )


def _end_records(count: int, size: int, start: int) -> bytes:
    return (
        _ZIP64_END.pack(b"PK\x06\x06", _ZIP64_END.size - 12, *_VERSIONS, count, count, size, start)
        + _ZIP64_LOCATOR.pack(b"PK\x06\x07", start + size, 1)
        + _END.pack(b"PK\x05\x06", *[min(count, _MOST_16)] * 2, min(size, _MOST_32), min(start, _MOST_32))
    )


def _flags(size: int) -> int:
    return _UTF8 | _DESCRIPTOR if size else _UTF8


def _zip64(*values: int) -> bytes:
    return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""
