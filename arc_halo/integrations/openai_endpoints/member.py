"""An endpoint as a member."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, Literal

from arc_halo.errors import MemberError, MemberTimeout
from arc_halo.integrations.openai_endpoints.settings import load_endpoint
from arc_halo.integrations.openai_endpoints.transport import Post, send
from arc_halo.integrations.openai_endpoints.wire import answer_of, request_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from arc_halo.fusion.members.protocol import Answer, Question
    from arc_halo.fusion.plan import MemberPlan
    from arc_halo.integrations.openai_endpoints.settings import EndpointSettings

_PATHS: Final = {"chat": "chat/completions", "completions": "completions"}
_EXCERPT: Final = 200
_LEAST_SECRET: Final = 8
"""Characters; shorter keys are such as ``EMPTY``, and stand in many texts."""


class EndpointMember:
    """A model behind HTTP that answers as OpenAI's do; several threads may ask it at once.

    Its certificate is verified, redirects are not followed, answers are bounded in time and bytes, and what it says
    is never more than text. Proxies of the environment (``HTTPS_PROXY``) are used.

    Parameters
    ----------
    name
        For errors.
    settings
        By default what the environment has for that name.

    Raises
    ------
    ConfigurationError
        The environment has nothing for it, or nothing that can be used.
    """

    def __init__(self, name: str, settings: EndpointSettings | None = None) -> None:
        self.name = name
        self.settings = load_endpoint(name) if settings is None else settings
        self._gives_choices = self.settings.logprobs

    def __repr__(self) -> str:
        return f"EndpointMember({self.name!r}, {self.settings.url!r})"

    @property
    def level(self) -> Literal["T", "L"]:
        """``L`` where log-probabilities are asked for, until an answer comes without."""
        return "L" if self._gives_choices else "T"

    def answer(self, question: Question) -> Answer:
        """Ask the endpoint.

        Raises
        ------
        MemberError
            It refuses, is out of order, or answers what cannot be read.
        MemberTimeout
            There is no answer within ``seconds``.
        """
        return self.answer_while(question, lambda: True)

    def answer_while(self, question: Question, is_wanted: Callable[[], bool]) -> Answer:
        """As `answer`; nothing more is sent once the answer is not wanted any more."""
        deadline = time.monotonic() + self.settings.seconds
        where = f"endpoint {self.name!r}"
        try:
            body = send(
                self._post(question),
                deadline=deadline,
                attempts=self.settings.attempts,
                explain=self._excerpt,
                is_wanted=is_wanted,
            )
            answer = answer_of(self.settings, question, body)
            if self._holds_key(answer):
                raise MemberError("its answer holds the key it was asked with, and is stored nowhere")  # noqa: TRY301
        except MemberTimeout as error:
            raise MemberTimeout(f"{where} ({self.settings.seconds:.3g} s): {error}") from error.__cause__
        except MemberError as error:
            raise MemberError(f"{where}: {self._readable(str(error), 1000)}") from error.__cause__
        if answer.text:
            self._gives_choices = bool(answer.choices)
        return answer

    def _post(self, question: Question) -> Post:
        headers = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": f"arc-halo/{version('arc-halo')}",
        }
        if self.settings.key is not None:
            headers["authorization"] = f"Bearer {self.settings.key.get_secret_value()}"
        url = f"{self.settings.url}/{_PATHS[self.settings.kind]}"
        return Post(url, headers, json.dumps(request_of(self.settings, question)).encode())

    def _excerpt(self, body: bytes) -> str:
        """The beginning of what the server said, or its message where it has one."""
        text = body.decode("utf-8", "replace")
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            said = None
        error = said.get("error", said) if isinstance(said, dict) else None
        message = error.get("message") if isinstance(error, dict) else error
        return self._readable(message if isinstance(message, str) else text, _EXCERPT)

    def _readable(self, text: str, length: int) -> str:
        """A text without the key, in one line, of characters that the database takes."""
        key = self._secret
        if key is not None:
            text = (
                text.replace(key, "***").replace(json.dumps(key)[1:-1], "***").replace(key.replace("/", "\\/"), "***")
            )
        # The key goes first: shortened before, its beginning would be left.
        line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
        return line if len(line) <= length else f"{line[:length]}..."

    def _holds_key(self, answer: Answer) -> bool:
        """Whether any text of it has it; not its JSON, which may write each letter in several ways."""
        key = self._secret
        tokens = (text for each in answer.choices for text in (each.text, *each.top))
        return key is not None and any(
            key in text for text in (answer.text, *map(str, answer.details.values()), *tokens)
        )

    @property
    def _secret(self) -> str | None:
        key = None if self.settings.key is None else self.settings.key.get_secret_value()
        return key if key is not None and len(key) >= _LEAST_SECRET else None


def endpoint_members() -> Callable[[MemberPlan], EndpointMember | None]:
    """What a `Reactor` takes as its members: endpoints by the names in their rows.

    Returns
    -------
    Callable
        Reads the environment when a reactor first meets the member; gives None for members without an endpoint, so
        that it can stand beside others: ``lambda plan: endpoints(plan) or models(plan)``.

    Examples
    --------
    >>> reactor = Reactor(db, "answers", endpoint_members())  # doctest: +SKIP
    """

    def member_of(plan: MemberPlan) -> EndpointMember | None:
        return None if plan.endpoint is None else EndpointMember(plan.endpoint)

    return member_of
