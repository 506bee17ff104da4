-- Everything of a tenant in one order (`hydracore audit show --tenant`). The events of a command share its time and follow each
-- other, so an order of the commands is one of the events, and an index of the commands is the smaller one.
CREATE INDEX command_by_tenant ON command (tenant_id, recorded_at, lane, first_seq);
