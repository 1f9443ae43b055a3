from pathlib import Path

import pytest

from appliance.device.thermal import cpu_temperature


def zone(root: Path, number: int, kind: str, temperature: str | None) -> None:
    directory = root / f"thermal_zone{number}"
    directory.mkdir()
    (directory / "type").write_text(f"{kind}\n")
    if temperature is not None:
        (directory / "temp").write_text(temperature)


def test_a_raspberry_pi(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", "48686\n")
    assert cpu_temperature(tmp_path) == 48.686


def test_the_processors_zone_is_taken_among_others(tmp_path: Path) -> None:
    zone(tmp_path, 0, "acpitz", "27800\n")
    zone(tmp_path, 2, "iwlwifi_1", "61000\n")
    zone(tmp_path, 10, "x86_pkg_temp", "52000\n")
    assert cpu_temperature(tmp_path) == 52.0


def test_the_first_zone_where_none_is_known_to_be_the_processors(tmp_path: Path) -> None:
    zone(tmp_path, 10, "gpu", "70000\n")
    zone(tmp_path, 9, "board", "31000\n")
    assert cpu_temperature(tmp_path) == 31.0


@pytest.mark.parametrize("said", [None, "", "warm\n", "-274000\n", "4294967295\n", "\xff\n"])
def test_a_zone_that_says_nonsense_is_passed_over(tmp_path: Path, said: str | None) -> None:
    zone(tmp_path, 0, "cpu-thermal", said)
    assert cpu_temperature(tmp_path) is None
    zone(tmp_path, 1, "board", "31000\n")
    assert cpu_temperature(tmp_path) == 31.0


def test_a_machine_without_sensors_has_no_temperature(tmp_path: Path) -> None:
    assert cpu_temperature(tmp_path) is None
    assert cpu_temperature(tmp_path / "absent") is None


def test_frost_is_a_temperature(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", "-10500\n")
    assert cpu_temperature(tmp_path) == -10.5
    zone(tmp_path, 1, "cpu-thermal", "0\n")
    (tmp_path / "thermal_zone0" / "temp").unlink()
    assert cpu_temperature(tmp_path) == 0.0
