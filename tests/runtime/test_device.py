"""Which machine this is, read from a folder that looks like another machine's root."""

import os
from pathlib import Path

from edgestill.runtime.device import describe_device, package_versions, peak_rss_bytes, usable_cores

RASPBERRY_PI_5 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Revision\t: c04170
Serial\t\t: 0000000000000000
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
LAPTOP = """processor\t: 0
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni amx_int8 nonsense
"""


def a_root(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_a_raspberry_pi_is_called_by_its_model(tmp_path: Path) -> None:
    device = describe_device(
        a_root(
            tmp_path,
            {
                "proc/cpuinfo": RASPBERRY_PI_5,
                "proc/meminfo": "MemTotal:        8255232 kB\nMemFree:  1 kB\n",
                "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
            },
        )
    )
    assert device.cpu_model == "Raspberry Pi 5 Model B Rev 1.0"
    assert device.isa == ("asimddp",)
    assert device.ram_bytes == 8255232 * 1024
    assert device.governor == "ondemand"


def test_an_intel_machine_is_called_by_its_model_name_and_not_by_its_number(tmp_path: Path) -> None:
    device = describe_device(a_root(tmp_path, {"proc/cpuinfo": LAPTOP}))
    assert device.cpu_model == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert device.isa == ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")


def test_what_is_unknown_is_none(tmp_path: Path) -> None:
    device = describe_device(tmp_path)
    assert (device.cpu_model, device.isa, device.ram_bytes, device.governor) == (None, (), None, None)


def test_an_arm_machine_without_a_model_is_called_by_its_core(tmp_path: Path) -> None:
    numbers = RASPBERRY_PI_5.partition("\nRevision")[0]
    assert describe_device(a_root(tmp_path, {"proc/cpuinfo": numbers})).cpu_model == "Cortex-A76"
    other = numbers.replace("0xd0b", "0x001")
    assert describe_device(a_root(tmp_path, {"proc/cpuinfo": other})).cpu_model == "ARM implementer 0x41 part 0x001"


def test_a_field_without_a_value_is_unknown(tmp_path: Path) -> None:
    device = describe_device(a_root(tmp_path, {"proc/cpuinfo": "model name\t:\n", "proc/meminfo": "SwapTotal: 5 kB\n"}))
    assert (device.cpu_model, device.ram_bytes) == (None, None)


def test_usable_cores_follow_the_affinity_mask() -> None:
    mask = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mask)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, mask)
    assert usable_cores() == len(mask)


def test_an_absent_package_is_left_out() -> None:
    assert set(package_versions(("numpy", "no-such-distribution"))) == {"numpy"}


def test_this_process_has_a_peak_memory_above_a_megabyte() -> None:
    peak = peak_rss_bytes()
    assert peak is not None
    assert 1_000_000 < peak < 1_000_000_000_000
