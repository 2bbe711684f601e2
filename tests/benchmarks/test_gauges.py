"""Gauges read a made /proc and /sys, and say nothing where there is nothing to read."""

import os
import threading

import pytest

from edgestill.benchmarks.gauges import energy, memory, noise, pages, thermal
from edgestill.benchmarks.gauges.watch import Watch, idle_w


def put(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text}\n")


RAPL = "sys/class/powercap/intel-rapl:0"


def rapl(root, package_uj, dram_uj=0):
    zones = {"": ("package-0", package_uj), "/intel-rapl:0:1": ("dram", dram_uj), "/intel-rapl:0:0": ("core", 999)}
    for zone, (name, uj) in zones.items():
        place = f"{RAPL}{zone}" if not zone else f"sys/class/powercap{zone}"
        put(root, {f"{place}/name": name, f"{place}/energy_uj": uj, f"{place}/max_energy_range_uj": 10_000_000})


def test_no_source_of_energy_is_no_meter(tmp_path):
    assert energy.find_meter(tmp_path) is None
    assert idle_w(tmp_path) is None


def test_rapl_adds_packages_and_memory_and_survives_a_wrap(tmp_path):
    rapl(tmp_path, 9_000_000, 100_000)
    meter = energy.find_meter(tmp_path)
    assert meter.source == "rapl: package-0, dram"
    meter.sample(0.0)
    assert meter.joules == 0.0, "what was counted before the first sample is not ours"
    rapl(tmp_path, 1_000_000, 600_000)
    meter.sample(1.0)
    assert meter.joules == pytest.approx(2.0 + 0.5), "2 J over the wrap at 10 J, 0.5 J of memory, core lies within"


def test_rapl_counters_that_cannot_be_read_are_no_source(tmp_path):
    put(tmp_path, {f"{RAPL}/name": "package-0", f"{RAPL}/energy_uj": ""})
    assert energy.find_meter(tmp_path) is None


def test_a_meter_on_the_board_is_summed_over_time_and_a_graphics_card_is_none(tmp_path):
    put(tmp_path, {"sys/class/hwmon/hwmon0/name": "amdgpu", "sys/class/hwmon/hwmon0/power1_input": 9_000_000})
    assert energy.find_meter(tmp_path) is None
    put(tmp_path, {"sys/class/hwmon/hwmon1/name": "ina219", "sys/class/hwmon/hwmon1/power1_input": 2_000_000})
    meter = energy.find_meter(tmp_path)
    assert meter.source == "hwmon: ina219 power1_input"
    meter.sample(10.0)
    put(tmp_path, {"sys/class/hwmon/hwmon1/power1_input": 4_000_000})
    meter.sample(12.0)
    assert meter.joules == pytest.approx(6.0)


BATTERY = "sys/class/power_supply/BAT0"


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({"power_now": 5_000_000}, "battery: BAT0 power_now"),
        ({"current_now": 500_000, "voltage_now": 10_000_000}, "battery: BAT0 current_now x voltage_now"),
    ],
)
def test_a_battery_counts_while_it_discharges(tmp_path, files, source):
    put(tmp_path, {f"{BATTERY}/{name}": value for name, value in {**files, "type": "Battery"}.items()})
    put(tmp_path, {f"{BATTERY}/status": "Charging"})
    assert energy.find_meter(tmp_path) is None
    put(tmp_path, {f"{BATTERY}/status": "Discharging"})
    meter = energy.find_meter(tmp_path)
    assert meter.source == source
    meter.sample(0.0)
    meter.sample(2.0)
    assert meter.joules == pytest.approx(10.0)


RAPL_RANGE = f"{RAPL}/max_energy_range_uj"


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ({f"{BATTERY}/power_now": ""}, 0.0),
        ({f"{BATTERY}/power_now": "no data"}, 0.0),
        ({f"{BATTERY}/status": "Charging"}, 0.0),
        ({f"{BATTERY}/power_now": 6_000_000}, None),
    ],
)
def test_a_battery_that_stops_telling_what_the_machine_takes_tells_no_energy_at_all(tmp_path, then, said):
    put(tmp_path, {f"{BATTERY}/type": "Battery", f"{BATTERY}/status": "Discharging", f"{BATTERY}/power_now": 5_000_000})
    first = {path: (tmp_path / path).read_text().strip() for path in then}
    with Watch(tmp_path) as watch:
        put(tmp_path, then)
        watch._sample()
        put(tmp_path, first)  # what was missed in between stays missing
    told = watch.readings(0.0, 5)["energy"]
    assert (set(told.values()) == {None}) is (said is not None), told


@pytest.mark.parametrize("then", [{f"{RAPL}/energy_uj": ""}, {f"{RAPL}/energy_uj": "?"}, {f"{RAPL}/energy_uj": 1}])
def test_a_counter_that_cannot_be_followed_tells_no_energy_at_all(tmp_path, then):
    rapl(tmp_path, 5_000_000)
    put(tmp_path, {RAPL_RANGE: "?"})  # so that a wrap is a riddle
    with Watch(tmp_path) as watch:
        put(tmp_path, then)
        watch._sample()
        rapl(tmp_path, 6_000_000)
    assert set(watch.readings(0.0, 5)["energy"].values()) == {None}


def test_idling_of_a_source_that_falls_silent_has_no_watts(tmp_path):
    put(tmp_path, {"sys/class/hwmon/hwmon1/name": "ina219", "sys/class/hwmon/hwmon1/power1_input": 2_000_000})
    silence = threading.Timer(0.1, put, (tmp_path, {"sys/class/hwmon/hwmon1/power1_input": ""}))
    silence.start()
    assert idle_w(tmp_path, 0.5) is None
    silence.join()


def test_heat_clock_and_throttling_are_followed(tmp_path):
    cpu = "sys/devices/system/cpu"
    put(tmp_path, {"sys/class/thermal/thermal_zone0/temp": 41_000, "sys/class/thermal/thermal_zone1/temp": 38_000})
    put(tmp_path, {f"{cpu}/cpu{n}/cpufreq/cpuinfo_max_freq": 2_000_000 for n in range(2)})
    put(tmp_path, {f"{cpu}/cpu0/cpufreq/scaling_cur_freq": 2_000_000, f"{cpu}/cpu1/cpufreq/scaling_cur_freq": 600_000})
    put(tmp_path, {f"{cpu}/cpu0/thermal_throttle/core_throttle_count": 7})
    watch = thermal.ThermalWatch(tmp_path)
    watch.sample()
    assert watch.reading().throttled is False, "7 times before us are not ours"
    put(tmp_path, {"sys/class/thermal/thermal_zone1/temp": 80_500, f"{cpu}/cpu0/cpufreq/scaling_cur_freq": 1_500_000})
    watch.sample()
    put(tmp_path, {"sys/class/thermal/thermal_zone1/temp": 52_000})
    put(tmp_path, {f"{cpu}/cpu0/thermal_throttle/core_throttle_count": 8})
    watch.sample()
    found = watch.reading()
    assert (found.start_c, found.max_c, found.end_c) == (41.0, 80.5, 52.0)
    assert found.lowest_frequency == 0.75, "the busiest core's clock; the other one rests"
    assert found.throttled is True


@pytest.mark.parametrize(("flags", "throttled"), [("0", False), ("50000", False), ("50005", True)])
def test_a_pi_tells_by_bits_whether_it_holds_itself_back_now(tmp_path, flags, throttled):
    put(tmp_path, {thermal.PI_FIRMWARE: flags})
    watch = thermal.ThermalWatch(tmp_path)
    watch.sample()
    assert watch.reading().throttled is throttled


def test_a_processors_own_sensor_stands_in_for_silent_zones(tmp_path):
    put(tmp_path, {"sys/class/hwmon/hwmon0/name": "nvme", "sys/class/hwmon/hwmon0/temp1_input": 70_000})
    assert thermal.hottest_c(tmp_path) is None
    put(tmp_path, {"sys/class/hwmon/hwmon1/name": "k10temp", "sys/class/hwmon/hwmon1/temp1_input": 55_250})
    assert thermal.hottest_c(tmp_path) == 55.25


def pressure(percent):
    return f"some avg10={percent} avg60=3.00 avg300=1.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0"


def test_noise_keeps_the_highest_and_counts_what_grew(tmp_path):
    put(tmp_path, {"proc/pressure/cpu": pressure("12.50"), "proc/loadavg": "0.50 0.40 0.30 1/100 42"})
    put(tmp_path, {"proc/stat": "cpu  100 0 0 900 0 0 0 10 50 0\ncpu0 1 2 3"})
    watch = noise.NoiseWatch(tmp_path)
    watch.sample()
    put(tmp_path, {"proc/pressure/cpu": pressure("3.00"), "proc/loadavg": "2.50 0.40 0.30 1/100 42"})
    put(tmp_path, {"proc/stat": "cpu  150 0 0 940 0 0 0 20 99 0\ncpu0 1 2 3"})
    watch.sample()
    found = watch.reading()
    assert (found.psi_cpu_some_avg10, found.load_1min) == (12.5, 2.5)
    assert found.steal_percent == pytest.approx(10.0), "10 of 100 ticks; guest time is user time already"
    assert found.involuntary_switches >= 0


def test_silent_gauges_say_none(tmp_path):
    with Watch(tmp_path) as watch:
        pass
    found = watch.readings(None, 5)
    told = {**found["energy"], **found["thermal"], **found["noise"]}
    assert {name for name, value in told.items() if value is not None} == {"involuntary_switches"}
    assert found["governor_changed"] is False


def test_a_watch_tells_joules_by_request_less_those_of_idling(tmp_path):
    rapl(tmp_path, 0)
    put(tmp_path, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand"})
    with Watch(tmp_path) as watch:
        rapl(tmp_path, 4_000_000)
        put(tmp_path, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave"})
    found = watch.readings(0.0, 8)
    assert found["energy"]["gross_j"] == pytest.approx(4.0)
    assert found["energy"]["net_j_per_request"] == pytest.approx(0.5)
    assert found["governor_changed"] is True
    with_idle = watch.readings(2.0, 8)["energy"]
    assert with_idle["net_j"] < with_idle["gross_j"] == pytest.approx(4.0)


def test_memory_is_read_from_proc(tmp_path):
    put(tmp_path, {"proc/self/status": "Name:\tx\nVmHWM:\t  300 kB\nVmRSS:\t 200 kB\nRssAnon:\t  50 kB"})
    put(tmp_path, {"proc/self/smaps_rollup": "0-1 ---p 0 0 0 [rollup]\nRss: 200 kB\nPss:  120 kB\nPss_Anon: 5 kB"})
    read = (memory.resident_bytes, memory.anonymous_bytes, memory.proportional_bytes)
    assert [gauge(tmp_path) for gauge in read] == [204_800, 51_200, 122_880]
    assert [gauge(tmp_path / "nowhere") for gauge in read] == [None] * 3


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/user.slice/a.scope", "sys/fs/cgroup/user.slice/a.scope/memory.peak"),
        ("5:cpu:/x\n4:memory:/box\n0::/", "sys/fs/cgroup/memory/box/memory.max_usage_in_bytes"),
    ],
)
def test_the_groups_peak_is_found_in_both_versions(tmp_path, groups, file):
    put(tmp_path, {"proc/self/cgroup": groups})
    assert memory.group_peak_bytes(tmp_path) is None
    put(tmp_path, {file: 123_456})
    assert memory.group_peak_bytes(tmp_path) == 123_456


def test_dropped_pages_are_gone_and_read_ones_are_back(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(4 << 20))
    if pages.drop_pages(file) is None:
        pytest.skip("this file system keeps its pages in memory")
    assert pages.resident_share(file) <= pages.MOST_RESIDENT
    file.read_bytes()
    assert pages.resident_share(file) == 1.0
