"""How a matrix is divided among the programs of a GPU kernel."""

WIDE = 256  # columns that a program looks at together, at most
PROGRAMS = 1024  # at most, about: each goes on through the rows


def power(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def shared(rows: int, width: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The grid of programs (rows, columns), and the tile of `size` values that one program reads at once."""
    wide = min(WIDE, power(width))
    tall, across = size // wide, -(-width // wide)
    return (max(1, min(-(-rows // tall), PROGRAMS // across)), across), (tall, wide)
