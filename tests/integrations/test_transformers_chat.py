"""Models that chat are asked in the template of their tokenizer, where the member's config says so."""

from importlib.resources import files
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from arc_halo import import_model
from arc_halo.errors import FusionError, MemberError
from arc_halo.fusion.members import Predicting, Question, Stoppable, level_of
from arc_halo.fusion.reactor import Reactor
from arc_halo.integrations.transformers_members import load_member, transformers_members
from arc_halo.registry import find_model
from tests.fusion.reactors import store_reactor

FOLDER = Path(str(files("arc_halo"))) / "demo_model"
QUESTION = Question("Return a list of", max_tokens=6)


@pytest.fixture
def stored(database):
    """The demo model, as ``lm@1``."""
    with database.session() as session:
        import_model(session, FOLDER, name="lm", embeddings=False)
        session.commit()
    return database


TEMPLATE = (
    "{% for each in messages %}<{{ each.role }}>{{ each.content }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture
def chat(stored, tmp_path):
    """The demo model with a template of chats, as ``chat@1``."""
    for each in FOLDER.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    with stored.session() as session:
        import_model(session, tmp_path, name="chat", embeddings=False)
        session.commit()
    return stored


def test_a_chat_is_put_as_the_template_says(chat):
    with load_member(chat, "chat@1", cache=False) as member:
        asked = Question("Return a list", system="Be brief.", max_tokens=6)
        said = "<system>Be brief.<user>Return a list<a>"
        ids = member.tokenizer(said, add_special_tokens=False).input_ids
        assert member.chatting.encode(asked) == ids
        answer, plain = member.chatting.answer(asked), member.answer(asked)
        assert answer.prompt_token_count == len(ids) != plain.prompt_token_count
        assert [each.text for each in answer.choices] == [
            each.text for each in member.continue_while(ids, asked, lambda: True).choices
        ]
        assert level_of(member.chatting) == "L"
        assert isinstance(member.chatting, Stoppable)
        assert not isinstance(member.chatting, Predicting)


def test_a_members_config_asks_for_the_template(chat):
    with chat.session() as session:
        model_id = find_model(session, "chat@1").id
    columns = {"endpoint": None, "model_id": model_id}
    store_reactor(chat, {"chat": columns | {"config": {"chat_template": True}}, "plain": columns})
    with transformers_members(chat, cache=False) as models:
        outcome = Reactor(chat, "reactor", models).run("Return a list", seed=1)
    counts = {call.member.name: call.answer.prompt_token_count for call in outcome.calls}
    assert counts["chat"] > counts["plain"]
    assert {call.member.name: call.answer.details.get("chat_template") for call in outcome.calls} == {
        "chat": True,
        "plain": None,
    }


@pytest.mark.parametrize(("said", "message"), [(True, "no chat template: leave"), ("yes", "true or false, not 'yes'")])
def test_a_template_that_there_is_not_is_said(stored, said, message):
    with stored.session() as session:
        model_id = find_model(session, "lm@1").id
    store_reactor(stored, {"m": {"endpoint": None, "model_id": model_id, "config": {"chat_template": said}}})
    with transformers_members(stored, cache=False) as models, pytest.raises(FusionError, match=message):
        Reactor(stored, "reactor", models).run("?")


def test_a_template_that_refuses_is_the_members_error(chat):
    with load_member(chat, "chat@1", cache=False) as member:
        member.tokenizer.chat_template = "{{ raise_exception('no system here') }}"
        with pytest.raises(MemberError, match="chat template refuses the question: no system here"):
            member.chatting.answer(QUESTION)
