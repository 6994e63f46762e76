import pickle

import pytest

from pipeline import errors
from pipeline.errors import Rejected, RejectedInputs, SgsfaError, UserError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UserError)]


@pytest.mark.parametrize("kind", KINDS)
def test_user_error__survives_pickling_with_all_parts(kind):
    error = kind("found", where="a.jpg", expected="an image", hint="look", cause=OSError(5, "broken", "b.bin"))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.message, again.where, again.expected, again.hint) == ("found", "a.jpg", "an image", "look")
    assert (
        str(again)
        == str(error)
        == ("found\nwhere: a.jpg\nexpected: an image\nhint: look\ncause: [Errno 5] broken: 'b.bin'")
    )


def test_user_error__omits_unknown_parts():
    assert str(UserError("found")) == "found"
    assert UserError("found", hint="look").details() == [("hint", "look")]


def test_rejected_inputs__survive_pickling():
    error = RejectedInputs("masks", [Rejected("a.jpg", "truncated")], total=10)
    again = pickle.loads(pickle.dumps(error))
    assert again.rejected == (Rejected("a.jpg", "truncated"),)
    assert str(again) == "masks: 1 of 10 inputs were skipped"


def test_errors__have_documented_exit_codes():
    assert SgsfaError.exit_code == 1
    assert {kind.exit_code for kind in KINDS} == {2}
    assert RejectedInputs.exit_code == 3


def test_cause__keeps_the_whole_text_of_the_library():
    text = "first line\n\n" + "x" * 5000 + "\nUnsupported model IR version: 99, max supported IR version: 10"
    assert UserError("found", cause=RuntimeError(text)).details() == [("cause", text)]
    assert UserError("found", cause=KeyError()).cause == "KeyError"
    assert UserError("found", cause="said").cause == "said"
