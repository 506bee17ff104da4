"""The program on the VPS: it enrols with the control plane, supervises one runtime, and reports how it fares.

With the control plane it shares only the types of their messages, the HTTP client and server, and small modules without
any I/O, such as the masking of secrets; so it starts fast and fits a small machine. See docs/agent.md.
"""

#: The version that the agent reports. A unit test checks that it is the one in pyproject.toml; reading it from the
#: installed package's metadata would take some 20 ms of every start.
VERSION = "0.1.0"
