"""Commands that a user can paste."""

import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nem_lightning.runs.hints import override

printable = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1)
awkward = st.text(st.sampled_from("a/ ='\"[]{}(),$!\\~:#*;&|<>?%`"), min_size=1)


def pasted(hint: str) -> tuple[str, object]:
    """Give the key and the value that Hydra reads after a shell has read the hint."""
    (word,) = shlex.split(hint)
    (parsed,) = OverridesParser.create().parse_overrides([word])
    return parsed.get_key_element(), parsed.value()


@given(st.one_of(awkward, st.just("${x}"), printable).map(lambda text: f"/runs/{text}"))
def test_any_folder_can_be_pasted(path):
    key, value = pasted(override("hydra.run.dir", path))
    assert key == "hydra.run.dir"
    assert OmegaConf.create({"path": value}).path == path


def test_a_plain_folder_is_not_quoted():
    assert (
        override("hydra.run.dir", "outputs/2026-01-01_12-00-00_a+b") == "hydra.run.dir=outputs/2026-01-01_12-00-00_a+b"
    )
    assert override("hydra.run.dir", "my runs") == "\"hydra.run.dir='my runs'\""
