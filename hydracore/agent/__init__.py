"""The program on the VPS: it enrols with the control plane, supervises one runtime, and reports how it fares.

It shares with the control plane only the shapes on the wire, how HTTP is spoken and served, and small modules without any
I/O, such as the masking of secrets; so it starts fast and fits a small machine. See docs/agent.md.
"""

#: What the agent says it is. A unit test holds it equal to the version in pyproject.toml; reading the installed package's
#: metadata instead would cost every start some 20 ms.
VERSION = "0.1.0"
