"""A scripted stand-in for an OpenAI-compatible model server: deterministic, metered, and able to misbehave on request.

It contains no language model, and says so wherever users can see it. See docs/modelsim.md.
"""
