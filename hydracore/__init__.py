"""HydraCore: an event-sourced control plane for hosted AI agents."""
