"""The unit after synthesis; `bench/netlist.py` has the long comparisons."""

from vmxswitch import cli


def test_the_netlist_of_compact_does_what_the_model_does(capsys):
    status = cli.main(["fuzz", "--config", "compact", "--backend", "netlist", "--count", "60",
                       "--seed", "3", "--jobs", "1"])
    counts = dict(word.split("=") for word in capsys.readouterr().out.splitlines()[0].split())
    assert (status, counts["disagreements"]) == (0, "0")
    assert int(counts["operations"]) > 2000
