from dataclasses import replace

from schnell.accounts.identity import Caller
from schnell.generations.idempotency import Unanswered
from schnell.generations.request import GenerationRequest
from schnell.spec import GenerationSpec

CALLER = Caller("team", "user", "Ann", "key", "MEMBER", ("generate",))
REQUEST = GenerationRequest(GenerationSpec("a red apple"), "flux", "onemin", {"prompt": "a red apple"})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_record_answers_one_retry() -> None:
    unanswered = Unanswered()
    unanswered.note(CALLER, REQUEST, "first")
    unanswered.note(CALLER, REQUEST, "second")
    assert [unanswered.take(CALLER, REQUEST) for _ in range(3)] == ["first", "second", None]


def test_only_the_same_request_of_the_same_caller_is_a_retry() -> None:
    unanswered = Unanswered()
    unanswered.note(CALLER, REQUEST, "first")
    others = [
        (replace(CALLER, team_id="other"), REQUEST),
        (replace(CALLER, user_id="other"), REQUEST),
        (replace(CALLER, key_id="other"), REQUEST),
        (CALLER, replace(REQUEST, dialect="openai")),
        (CALLER, replace(REQUEST, spec=GenerationSpec("a green apple"))),
        (CALLER, replace(REQUEST, prompt_object={"prompt": "a red apple", "seed": 1})),
    ]
    assert [unanswered.take(*other) for other in others] == [None] * len(others)
    assert unanswered.take(CALLER, replace(REQUEST, detached=True, inline=True)) == "first"


def test_after_a_minute_the_same_request_is_a_new_one() -> None:
    clock = Clock()
    unanswered = Unanswered(clock)
    unanswered.note(CALLER, REQUEST, "old")
    clock.now += 30
    unanswered.note(CALLER, REQUEST, "young")
    clock.now += 31
    assert unanswered.take(CALLER, REQUEST) == "young"
    assert unanswered.take(CALLER, REQUEST) is None


def test_it_is_bounded() -> None:
    unanswered = Unanswered()
    for number in range(3000):
        unanswered.note(CALLER, REQUEST, str(number))
    assert len(unanswered) == 1024
    assert unanswered.take(CALLER, REQUEST) == "1976"
