"""From a recipe to a cache, to a sweep trained from it, through the tools."""

import json
from pathlib import Path

from support.tools import AT_ONCE, tool


def test_a_sweep_trains_from_the_cache_that_its_recipe_makes(tiny_path: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "frozen.yaml"
    text = tiny_path.read_text().replace("  full: {}\n", "").replace("mixup: 0.2, ", "")
    recipe.write_text(f"{text}trunk: {{cache: {tmp_path / 'cache'}}}\n")  # which is not there yet
    asked = [recipe, "--views", 2, "--out", tmp_path / "cache"]
    refused = tool("cache", *asked, "--limit", "20k")
    assert refused.returncode == 2 and "more than --limit allows, 20 kB" in refused.stderr
    assert "caching" not in refused.stderr and not (tmp_path / "cache").exists()
    done = tool("cache", *asked, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["depths"] == [1, 3] and {each["samples"] for each in made["datasets"].values()} == {12}
    assert made["bytes"] == sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    trained = tool("sweep", recipe, f"out={tmp_path / 'run'}", before=AT_ONCE)
    assert trained.returncode == 0, trained.stderr
    assert "last: frozen depth 3" in trained.stdout and (tmp_path / "run/gated/config.json").is_file()

    checked = tool("check_shards", tmp_path / "cache")
    assert checked.returncode == 0 and "all 48 samples are unchanged since they were written" in checked.stdout
    tar = tmp_path / "cache/images/000000.tar"
    tar.write_bytes(tar.read_bytes()[:5000] + b"!" + tar.read_bytes()[5001:])
    checked = tool("check_shards", tmp_path / "cache")
    assert checked.returncode == 1 and "000000.tar: sample '" in checked.stdout
