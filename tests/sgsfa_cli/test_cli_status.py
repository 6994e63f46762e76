def test_status__shows_states_and_reasons(sgsfa, sgsfa_json):
    assert sgsfa("status").stdout.count("missing") == 4
    sgsfa("run")
    assert sgsfa("status").stdout.count("up to date") == 4
    text = sgsfa("status", "--set", "train.epochs=9").stdout
    assert "train.epochs changed from 120 to 9" in text
    stages = {stage["stage"]: stage for stage in sgsfa_json("status", "--set", "train.epochs=9")["stages"]}
    assert stages["train"]["state"] == "stale"
    assert stages["train"]["size"] > 0
    assert stages["train"]["finished"]
