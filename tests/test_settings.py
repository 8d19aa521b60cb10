"""Every environment variable has a Python equal, which wins; blocks hold for their own thread."""

import re
import threading
from pathlib import Path

import pytest

from speedysnn import settings
from speedysnn.errors import InputError
from speedysnn.kernels.jit import cache_folder

VALUES = {
    "events": ("never", "always"), "tiles": ("always", "measure"), "images_per_pass": ("3", 5), "kernel": ("cpu", "reference"),
    "cache": ("/one", "/other"), "data": ("/one", "/other"), "allocator": ("system", "keep"), "debug": ("1", False),
}  # fmt: skip


def test_the_values_name_all_settings() -> None:
    assert set(VALUES) == set(settings.SETTINGS)


@pytest.mark.parametrize("name", VALUES)
def test_python_wins_over_the_environment(name, monkeypatch) -> None:
    variable, (given, other) = settings.SETTINGS[name].variable, VALUES[name]
    monkeypatch.delenv(variable, raising=False)
    assert settings.get(name) == settings.SETTINGS[name].default
    monkeypatch.setenv(variable, given)
    found = settings.get(name)
    assert str(found) in (given, "True")
    try:
        setattr(settings, name, other)
        assert settings.get(name) == getattr(settings, name) == other
        with settings.using(**{name: given}):
            assert settings.get(name) == found
            with settings.using(**{name: None}):
                assert settings.get(name) == found  # the environment's
        assert settings.get(name) == other
    finally:
        settings.change(**{name: None})
    assert settings.get(name) == found


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"eventz": "never"}, "unknown setting 'eventz': expected one of events, tiles"),
        ({"events": "sometimes"}, "settings.events: expected one of fixed, measure, never, always, got 'sometimes'"),
        ({"tiles": "fixed"}, "expected one of never, measure, always"),
        ({"images_per_pass": 0}, "expected a whole number of at least 1, got 0"),
        ({"images_per_pass": 2.5}, "expected a whole number"),
        ({"cache": 3}, "expected a folder, got 3"),
    ],
)
def test_unknown_names_and_values_are_refused_with_the_list(values, said) -> None:
    for call in (settings.change, lambda **given: settings.using(**given).__enter__()):
        with pytest.raises(InputError, match=said):
            call(**values)
    with pytest.raises(InputError, match=said):
        setattr(settings, *next(iter(values.items())))


def test_a_wrong_word_of_the_environment_is_named(monkeypatch) -> None:
    monkeypatch.setenv("SPEEDYSNN_EVENTS", "sometimes")
    with pytest.raises(InputError, match="the environment variable SPEEDYSNN_EVENTS: expected one of fixed"):
        settings.get("events")
    monkeypatch.setenv("SPEEDYSNN_IMAGES_PER_PASS", "many")
    assert settings.images_per_pass is None
    with pytest.raises(AttributeError, match="unknown setting"):
        settings.eventz  # noqa: B018


def test_a_block_holds_for_its_thread_alone() -> None:
    seen = []
    with settings.using(events="never"):
        other = threading.Thread(target=lambda: seen.append(settings.get("events")))
        other.start()
        other.join()
        assert settings.events == "never"
    assert seen == [settings.get("events")]
    assert seen != ["never"]


def test_what_must_repeat_itself_has_no_stopwatch() -> None:
    with settings.using(events="measure", tiles="measure", kernel=None):
        assert settings.repeatable(settings.execution)() == {"events": "fixed", "tiles": "never", "kernel": "fastest"}
    with settings.using(events="always", tiles="always"):
        assert settings.repeatable(settings.execution)()["tiles"] == "always"


def test_the_cache_folder_is_the_users_own_unless_given(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("SPEEDYSNN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "speedysnn"
    monkeypatch.setenv("SPEEDYSNN_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_no_environment_variable_of_the_package_is_without_a_setting() -> None:
    files = [*Path(settings.__file__).parent.rglob("*.py"), *(Path(__file__).parents[1] / "docs").rglob("*.md")]
    used = {name for file in files for name in re.findall(r"SPEEDYSNN_[A-Z_]+", file.read_text(encoding="utf-8"))}
    assert used == {setting.variable for setting in settings.SETTINGS.values()}
