"""How the rows are laid out."""

import numba

from services.engine.book import lay_out


def test_a_book_is_of_one_type_however_many_symbols_it_has() -> None:
    """What was compiled for one engine is used for the next without looking at its types again."""
    types = {numba.typeof(lay_out(symbols, 100)[0]) for symbols in (1, 2, 50)}  # type: ignore[no-untyped-call]
    assert len(types) == 1
