"""A scripted stand-in for an OpenAI-compatible model server: deterministic, metered, and able to misbehave on request.

No language model is in it, and it says so wherever it shows. See docs/modelsim.md.
"""
