"""What goes into a prompt: skills from their folders, its parts in order, and as much of the conversation's history as fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from hydracore.agent.errors import RuntimeFailed
from hydracore.agent.expressclaw.context_window import (
    CONTEXT_MESSAGES_MAX,
    CONTEXT_TOKENS_MAX,
    ChatMessage,
    estimate_message_tokens,
    estimate_text_tokens,
    latest_that_fit,
    merge_same_role,
)
from hydracore.agent.expressclaw.document import (
    MODEL_TIMEOUT_S,
    Document,
    ModelPolicy,
    Platform,
    Preset,
    enabled_skills,
    read_document,
)
from hydracore.agent.expressclaw.prompt import system_prompt
from hydracore.agent.expressclaw.skills import (
    SHIPPED_SKILLS,
    SKILL_BYTES_MAX,
    SKILL_FILE,
    Skill,
    SkillInvalid,
    load_skills,
    read_skill,
)

# --- skills ----------------------------------------------------------------------------------------------------------


def test_every_shipped_skill_can_be_read_and_has_instructions_and_a_name_of_its_own() -> None:
    folders = sorted(path.name for path in SHIPPED_SKILLS.iterdir() if path.is_dir())

    skills, missing = load_skills(folders)

    assert missing == {}
    assert [skill.id for skill in skills] == folders == ["email-drafts", "meeting-notes", "task-planning"]
    assert all(len(skill.instructions) > 200 for skill in skills)
    assert len({skill.name for skill in skills}) == 3


def test_skills_are_loaded_in_the_order_given_and_missing_or_broken_ones_are_reported(tmp_path: Path) -> None:
    for name in ("a", "b", "broken"):
        (tmp_path / name).mkdir()
        (tmp_path / name / SKILL_FILE).write_text(f"---\nname: {name.upper()}\ndescription: d: e\n---\nDo {name}.\n")
    (tmp_path / "broken" / SKILL_FILE).write_text("no front matter")
    (tmp_path / "file").touch()

    skills, missing = load_skills(["b", "../a", "file", "broken", "nowhere", "a"], tmp_path)

    assert list(missing) == ["../a", "file", "broken", "nowhere"]
    assert missing["broken"].startswith("the skill cannot be used: SKILL.md ")
    assert skills == (Skill("b", "B", "d: e", "Do b."), Skill("a", "A", "d: e", "Do a."))


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\xff",
        b"---\nname: x\ndescription: y\n",
        b"---\nname: x\n---\nDo.\n",
        b"---\nname: x\ndescription: y\n---\n \n",
        b"---\nname: x\ndescription: y\n---\n" + b"x" * SKILL_BYTES_MAX,
    ],
    ids=["missing", "empty", "binary", "unclosed", "undescribed", "without_instructions", "long"],
)
def test_a_folder_without_a_valid_skill_file_is_refused_with_the_reason(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / SKILL_FILE).write_bytes(content)

    with pytest.raises(SkillInvalid, match=r"^SKILL\.md "):
        read_skill(tmp_path)


def test_skills_of_the_platform_replace_those_of_the_preset() -> None:
    preset = Preset(skills=("one", "two"))
    chosen = ("three", {"id": "two"}, {"id": "four", "enabled": False}, {"id": 5}, 6, "three")

    assert enabled_skills(Document(preset=preset)) == ("one", "two")
    assert enabled_skills(Document(preset=preset, platform=Platform(skills=()))) == ()
    assert enabled_skills(Document(preset=preset, platform=Platform(skills=chosen))) == ("three", "two")


# --- documents -------------------------------------------------------------------------------------------------------


def test_an_empty_document_means_the_defaults() -> None:
    document = read_document({"type": "expressclaw", "later": [1]})

    assert document == Document()
    assert (document.model_policy.models, document.platform.model_timeout_s) == ((), MODEL_TIMEOUT_S)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"base_url": "ftp://secret-place"}},
        {"model": {"base_url": "https://x", "api_key": "secret key"}},
        {"model": {"base_url": "https://x", "api_key": "secret-key\n"}},
        {"model_policy": {"temperature": 2.5}},
        {"model_policy": {"fallbacks": ["secret"] * 9}},
        {"prices": {"m": {"input_usd_per_mtok": "secret", "output_usd_per_mtok": "1"}}},
        {"system_prompt": 5},
    ],
)
def test_an_invalid_document_is_refused_without_quoting_its_values(settings: dict[str, object]) -> None:
    with pytest.raises(RuntimeFailed) as caught:
        read_document(settings)

    assert caught.value.code == "config_invalid"
    assert "secret" not in caught.value.message


def test_an_invalid_model_timeout_is_replaced_by_the_default() -> None:
    waits = [
        read_document({"platform": {"advanced": {"model_timeout_s": wanted}}}).platform.model_timeout_s
        for wanted in (5, 0.5, 0, -1, 301, "x", None, [], True)
    ]

    assert waits == [5, 0.5, *[MODEL_TIMEOUT_S] * 7]


def test_a_model_that_is_both_primary_and_fallback_is_listed_once() -> None:
    assert ModelPolicy(primary="a", fallbacks=("b", "a", "", "c")).models == ("a", "b", "c")


def test_secrets_and_prompts_are_left_out_of_the_repr() -> None:
    document = read_document(
        {
            "system_prompt": "very private",
            "model": {"base_url": "https://x", "api_key": "sk-1"},
            "telegram": {"bot_token": "1:tok"},
        }
    )

    shown = repr(document) + repr(document.model) + repr(document.telegram) + repr(ChatMessage("user", "very private"))

    assert "private" not in shown
    assert "sk-1" not in shown
    assert "1:tok" not in shown


# --- prompt and history ----------------------------------------------------------------------------------------------


def test_a_prompt_leaves_out_the_parts_that_are_not_set() -> None:
    assert system_prompt(Document(), (), today="2026-11-23") == "Today is 2026-11-23 (UTC)."
    document = Document(agent_name="Ada", preset=Preset(system_prompt=" Help. \n"), system_prompt="", recipe=None)
    assert system_prompt(document, (), today="2026-11-23") == (
        "Help.\n\nYour name is Ada.\n\nToday is 2026-11-23 (UTC)."
    )


def test_the_history_in_a_prompt_is_bounded_by_messages_and_begins_with_the_user() -> None:
    past = [ChatMessage("user" if index % 2 == 0 else "assistant", str(index)) for index in range(200)]

    kept = latest_that_fit(past)

    assert len(kept) == CONTEXT_MESSAGES_MAX
    assert kept[-1] == past[-1]
    assert latest_that_fit(past[1:2]) == []
    assert latest_that_fit(past[-61:])[0].role == "user"


def test_the_history_in_a_prompt_is_bounded_by_tokens_and_holds_whole_messages_only() -> None:
    long = ChatMessage("user", "x" * 8000)
    past = [long, ChatMessage("assistant", "short")] * 20

    kept = latest_that_fit(past)

    assert sum(map(estimate_message_tokens, kept)) <= CONTEXT_TOKENS_MAX
    assert set(kept) == {long, ChatMessage("assistant", "short")}
    assert len(kept) == 10
    assert latest_that_fit([ChatMessage("user", "x" * 5 * CONTEXT_TOKENS_MAX)]) == []


def test_consecutive_messages_of_one_role_are_merged() -> None:
    messages = [
        ChatMessage("user", "a"),
        ChatMessage("user", "b"),
        ChatMessage("assistant", "c"),
        ChatMessage("user", "d"),
    ]

    assert merge_same_role(messages) == [
        ChatMessage("user", "a\n\nb"),
        ChatMessage("assistant", "c"),
        ChatMessage("user", "d"),
    ]


def test_token_estimates_are_rounded_up() -> None:
    assert [estimate_text_tokens(text) for text in ("", "a", "abcd", "abcde")] == [0, 1, 1, 2]
