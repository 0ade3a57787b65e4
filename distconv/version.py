"""The version of distconv. Owns the number, which the package, its wheel and its records of results share."""

VERSION = "0.1.0"
