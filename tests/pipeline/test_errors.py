import pickle

import pytest

from pipeline import errors
from pipeline.errors import Rejected, RejectedInputs, SgsfaError, UserError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UserError)]


@pytest.mark.parametrize("kind", KINDS)
def test_user_errors_survive_pickling_with_all_their_parts(kind):
    error = kind("found", where="a.jpg", expected="an image", hint="look")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.message, again.where, again.expected, again.hint) == ("found", "a.jpg", "an image", "look")
    assert str(again) == str(error) == "found\nwhere: a.jpg\nexpected: an image\nto do: look"


def test_parts_that_are_not_known_are_not_shown():
    assert str(UserError("found")) == "found"
    assert UserError("found", hint="look").details() == [("to do", "look")]


def test_rejected_inputs_survive_pickling():
    error = RejectedInputs("masks", [Rejected("a.jpg", "truncated")], total=10)
    again = pickle.loads(pickle.dumps(error))
    assert again.rejected == (Rejected("a.jpg", "truncated"),)
    assert str(again) == "masks: 1 of 10 inputs were rejected"


def test_exit_codes():
    assert SgsfaError.exit_code == 1
    assert {kind.exit_code for kind in KINDS} == {2}
    assert RejectedInputs.exit_code == 3
