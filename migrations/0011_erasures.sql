-- Whoever starts asks whether anybody was ever erased; without this, of a log that knows of none all would be read.
CREATE INDEX event_erasure ON event (lane, seq) WHERE type = 'customer_erased';
