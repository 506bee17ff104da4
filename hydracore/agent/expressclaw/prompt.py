"""Builds the system prompt from the prompts of preset, recipe and owner, from skills and from workflows."""

from __future__ import annotations

from collections.abc import Sequence

from hydracore.agent.expressclaw.document import Document, Workflow
from hydracore.agent.expressclaw.skills import Skill


def system_prompt(
    document: Document, skills: Sequence[Skill], workflows: Sequence[Workflow] = (), *, today: str
) -> str:
    """The parts go from the general to the specific, as models give more weight to later words. `today` (YYYY-MM-DD)
    comes last, because endpoints charge less for a prompt with the same beginning as an earlier one."""
    recipe = document.recipe.prompt if document.recipe is not None else ""
    parts = [
        document.preset.system_prompt,
        f"Your name is {document.agent_name}." if document.agent_name else "",
        recipe,
        document.system_prompt or "",
        *(_skill_part(skill) for skill in skills),
        *(_workflow_part(workflow) for workflow in workflows),
        _section("How you talk to the people you serve", document.customer_facing_prompt),
        f"Today is {today} (UTC).",
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip())


def _skill_part(skill: Skill) -> str:
    return _section(f"Skill: {skill.name}", f"{skill.description}\n\n{skill.instructions}")


def _workflow_part(workflow: Workflow) -> str:
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(workflow.steps, 1))
    when = f"Follow these steps in their order, one message each where you need an answer, when {workflow.when}:"
    return _section(f"Workflow: {workflow.name or workflow.slug}", f"{when}\n\n{steps}")


def _section(title: str, text: str | None) -> str:
    return f"## {title}\n\n{text.strip()}" if text and text.strip() else ""
