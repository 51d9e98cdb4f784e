import pytest

from datakit.errors import RecipeChanged
from datakit.storage.ledger import Commit, File, Ledger, Part
from datakit.storage.store import Store


@pytest.fixture
def ledger(tmp_path):
    return Ledger(Store(str(tmp_path)), "coyo/top20")


def commit(ledger, name="00001", recipe="r", inputs=None, data=b"rows"):
    written = ledger.store.write(f"{ledger.folder}/{name}.parquet", data)
    part = Part(name=name, rows=3, table=File(f"{name}.parquet", written.size_bytes, written.xxh3))
    made = Commit(recipe=recipe, inputs=inputs or {"list": "d"}, rows=3, dropped={"x": 2}, parts=[part])
    ledger.write(name, made)
    return made


def test_another_recipe_is_refused_with_the_fields_that_differ(ledger):
    ledger.claim({"share": 0.2, "stage": "ClipTop"})
    commit(ledger)

    with pytest.raises(RecipeChanged) as caught:
        ledger.claim({"share": 0.3, "stage": "ClipTop", "new": 1})

    assert "coyo/top20 was made by another recipe:\n  new: (nothing) -> 1\n  share: 0.2 -> 0.3\n" in str(caught.value)
    assert "--rebuild" in str(caught.value)


def test_a_folder_in_which_nothing_was_made_is_claimed_anew(ledger):
    ledger.claim({"share": 0.2})

    ledger.claim({"share": 0.3})

    assert ledger.recipe() == {"share": 0.3}


def test_the_same_recipe_is_taken_again(ledger):
    assert ledger.claim({"share": 0.2, "b": [1]}) == ledger.claim({"b": (1,), "share": 0.2})


def test_a_shard_is_done_when_its_commit_names_this_recipe_and_these_inputs(ledger):
    commit(ledger)

    assert ledger.state("00001", "r", {"list": "d"}) == "done"
    assert ledger.state("00001", "other", {"list": "d"}) == "stale"
    assert ledger.state("00001", "r", {"list": "e"}) == "stale"
    assert ledger.state("00002", "r", {"list": "d"}) == "missing"


def test_a_shard_whose_file_is_gone_or_cut_is_not_done(ledger):
    made = commit(ledger)
    path = ledger.store.path("coyo/top20/00001.parquet")

    path.write_bytes(b"row")
    assert ledger.state("00001", made.recipe, made.inputs) == "missing"
    path.unlink()
    assert ledger.state("00001", made.recipe, made.inputs) == "missing"


def test_a_file_that_was_cleaned_away_still_counts_where_it_is_not_needed(ledger):
    made = commit(ledger)
    ledger.mark_cleaned({"00001.parquet"})
    ledger.store.remove("coyo/top20/00001.parquet")

    assert ledger.state("00001", made.recipe, made.inputs, gone_is_fine=True) == "done"
    assert ledger.state("00001", made.recipe, made.inputs) == "missing"


def test_a_commit_cut_short_at_any_byte_is_a_shard_to_be_made_again_not_a_crash(ledger):
    made = commit(ledger)
    path = ledger.store.path("coyo/top20/00001.commit.json")
    data = path.read_bytes()

    for cut in range(len(data) - 2):
        path.write_bytes(data[:cut])
        assert ledger.state("00001", made.recipe, made.inputs) == "missing"
        assert ledger.commits() == {}


def test_a_recipe_file_cut_short_is_written_again(ledger):
    ledger.claim({"share": 0.2})
    ledger.store.path("coyo/top20/recipe.json").write_bytes(b'{"sha')

    ledger.claim({"share": 0.2})

    assert ledger.recipe() == {"share": 0.2}


def test_the_digest_follows_the_data_and_not_who_made_it(ledger):
    first = commit(ledger)

    assert commit(ledger).digest() == first.digest()
    assert commit(ledger, data=b"other").digest() != first.digest()


@pytest.mark.parametrize("junk", [b"{x", b'{"a":1}', b'["\xff"]'])
def test_a_damaged_list_of_what_was_cleaned_means_that_nothing_was(ledger, junk):
    made = commit(ledger)
    ledger.store.write("coyo/top20/cleaned.json", junk)

    assert ledger.cleaned_names() == set()
    assert ledger.state("00001", made.recipe, made.inputs, gone_is_fine=True) == "done"


def test_a_commit_whose_rows_are_not_those_of_its_parts_is_damaged(ledger):
    made = commit(ledger)
    path = ledger.store.path("coyo/top20/00001.commit.json")
    path.write_bytes(path.read_bytes().replace(b'"rows": 3', b'"rows": 4', 1))

    assert ledger.state("00001", made.recipe, made.inputs) == "missing"
