"""Skills: folders with a SKILL.md, whose instructions become part of the prompt when they are enabled."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

#: The skills that come with the agent.
SHIPPED_SKILLS = Path(__file__).with_name("skills")

SKILL_FILE = "SKILL.md"

#: The largest SKILL.md. It becomes a part of every prompt, so it has to be short.
SKILL_BYTES_MAX = 16 * 1024

_FENCE = "---"


class Skill(NamedTuple):
    """`id` is the folder's name."""

    id: str
    name: str
    description: str
    instructions: str


class LoadedSkills(NamedTuple):
    """`missing`: why the others could not be loaded, by id."""

    skills: tuple[Skill, ...]
    missing: dict[str, str]


class SkillInvalid(Exception):
    """The folder is not a skill; the text says why."""


def load_skills(ids: Iterable[str], folder: Path = SHIPPED_SKILLS) -> LoadedSkills:
    """Load the skills with these ids that exist and are valid."""
    loaded: list[Skill] = []
    missing: dict[str, str] = {}
    known = {path.name for path in folder.iterdir() if path.is_dir()}
    for skill_id in ids:
        # Only names of existing folders are ever made into a path.
        if skill_id not in known:
            missing[skill_id] = f"there is no skill {skill_id!r:.64}"
            continue
        try:
            loaded.append(read_skill(folder / skill_id))
        except SkillInvalid as error:
            missing[skill_id] = f"the skill cannot be used: {error}"
    return LoadedSkills(tuple(loaded), missing)


def read_skill(folder: Path) -> Skill:
    """Read a folder's SKILL.md: front matter with `name` and `description` between two `---` lines, then instructions.

    Raises `SkillInvalid`.
    """
    try:
        content = (folder / SKILL_FILE).read_bytes()
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SkillInvalid(f"{SKILL_FILE} cannot be read: {type(error).__name__}") from None
    if len(content) > SKILL_BYTES_MAX:
        raise SkillInvalid(f"{SKILL_FILE} is longer than {SKILL_BYTES_MAX} bytes")
    first, _, rest = text.partition("\n")
    front, fence, instructions = rest.partition(f"\n{_FENCE}\n")
    if first.strip() != _FENCE or not fence:
        raise SkillInvalid(f"{SKILL_FILE} does not begin with front matter")
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in front.splitlines())}
    skill = Skill(folder.name, fields.get("name", ""), fields.get("description", ""), instructions.strip())
    if not (skill.name and skill.description and skill.instructions):
        raise SkillInvalid(f"{SKILL_FILE} needs a name, a description and instructions")
    return skill
