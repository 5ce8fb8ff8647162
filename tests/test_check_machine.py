"""What `make` says before it installs, where a machine lacks something."""

import check_machine


def test_a_machine_that_has_all_is_not_held_up():
    assert check_machine.find_faults((3, 11), 4.0, "/here") == []


def test_an_old_python_and_a_full_disk_are_named():
    old, full = check_machine.find_faults((3, 9, 18), 1.5, "/here")
    assert "3.11 or newer" in old and "is 3.9" in old and "make PYTHON=" in old
    assert "1.5 GiB are free in /here" in full and "needs 4" in full
