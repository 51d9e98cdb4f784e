"""Places of pictures as Python has them, against the columns that hold them."""

from typing import get_args, get_type_hints

import pyarrow as pa
import pytest

from datakit.errors import SourceError
from datakit.records.tables import (
    LOCATED,
    PACKED,
    Extent,
    LocatedPicture,
    PackedPicture,
    column,
    extent_of,
    located_picture,
)

PYTHON = {
    pa.string(): str,
    pa.bool_(): bool,
    **dict.fromkeys((pa.int8(), pa.int16(), pa.int32(), pa.int64()), int),
}
WHERE = {"file": "d/fetch/00000.tar", "offset": 512, "stored_bytes": 9, "size_bytes": 9, "method": 0}


def types_of(typed):
    """The Python type of each field, be it one that may be None."""
    return {name: (get_args(hint) or (hint,))[0] for name, hint in get_type_hints(typed).items()}


@pytest.mark.parametrize(("typed", "kind"), [(LocatedPicture, LOCATED), (PackedPicture, PACKED)])
def test_the_fields_of_a_picture_are_those_of_its_column_in_name_order_and_type(typed, kind):
    assert list(types_of(typed).items()) == [(field.name, PYTHON[field.type]) for field in kind.value_type]


def test_an_extent_is_some_of_the_fields_of_a_located_picture():
    assert get_type_hints(Extent).keys() <= get_type_hints(LocatedPicture).keys()


def test_a_picture_without_bytes_has_its_reference_and_its_outcome_only():
    picture = located_picture("http://a.test/1.jpg", "dns")

    assert list(picture) == LOCATED.value_type.names
    assert {name: value for name, value in picture.items() if value is not None} == {
        "ref": "http://a.test/1.jpg",
        "outcome": "dns",
    }


def test_every_field_of_a_located_picture_comes_back_from_a_table():
    given = {name: {str: "x", bool: True, int: 7}[kind] for name, kind in types_of(LocatedPicture).items()}
    picture = located_picture(**given)

    assert dict(picture) == given
    assert column([[picture]], LOCATED).to_pylist() == pa.array([[picture]], LOCATED).to_pylist() == [[given]]


def test_where_the_bytes_of_a_picture_stand_is_told():
    assert extent_of(located_picture("a.jpg", "ok", **WHERE, sha256="0")) == WHERE


@pytest.mark.parametrize("lost", WHERE)
def test_a_picture_that_is_said_to_be_there_and_not_where_is_refused(lost):
    with pytest.raises(SourceError, match=r"'a\.jpg' is there, and not where .* file, offset, stored_bytes"):
        extent_of(located_picture("a.jpg", "ok", **{name: value for name, value in WHERE.items() if name != lost}))
