"""A provider of servers on this machine: the Hetzner Cloud API over local processes, with faults on request.

It stands for a company that we do not control, so it shares no code with the rest of HydraCore except the agent, which it
boots as a VPS would.
"""
