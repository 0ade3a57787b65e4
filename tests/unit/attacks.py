"""Pickles that call `os.system` when they are unpickled, each with another opcode; `%s` stands for a file to touch."""

from __future__ import annotations

# INST and OBJ call a class; BUILD sets attributes; NEWOBJ_EX has keyword arguments.
CALLS = (
    b"(S'touch %s'\nios\nsystem\n.",
    b"(cos\nsystem\nS'touch %s'\no.",
    b"cos\nsystem\n)\x81}S'a'\nS'touch %s'\nsb.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x8c\x01a\x8c\x01bs\x92.",
)
