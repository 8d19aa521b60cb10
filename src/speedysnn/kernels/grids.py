"""How the programs of a GPU share a matrix."""

WIDE = 256  # columns that a program looks at together, at most
PROGRAMS = 1024  # at most, about: each goes on through the rows


def power(n: int) -> int:
    """The power of two that is n, or the next."""
    return 1 << (n - 1).bit_length()


def shared(rows: int, width: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Programs along rows and columns, and the rows and columns that one looks at together: `size` values."""
    wide = min(WIDE, power(width))
    tall, across = size // wide, -(-width // wide)
    return (max(1, min(-(-rows // tall), PROGRAMS // across)), across), (tall, wide)
