"""A provider of servers on this machine: the Hetzner Cloud API over local processes, with faults on request.

It stands for a company that we do not control, so it knows nothing of the log or of the control
plane. It shares only the agent, which it boots as a VPS would, and the HTTP server.
"""
