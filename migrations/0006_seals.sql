-- Seals: signed statements of how far each lane had got and with which link. What is cut off, or written anew with links that
-- fit each other, no longer fits its seals. The signing key is not in the database, and copies of all seals lie outside it.

-- Lane n's head and link are element n + 1 of `heads` and bytes 32 n to 32 n + 31 of `links`. `root`: the Merkle root (RFC 6962)
-- over them; `previous`: SHA-256 of what the seal before signs, zeros for the first; `signature`: Ed25519.
CREATE TABLE seal (
    number bigint PRIMARY KEY CHECK (number > 0), -- dense from 1
    sealed_at timestamptz NOT NULL,
    heads bigint[] NOT NULL CHECK (cardinality(heads) = 64),
    links bytea NOT NULL CHECK (octet_length(links) = 2048),
    root bytea NOT NULL,
    previous bytea NOT NULL,
    public_key bytea NOT NULL,
    signature bytea NOT NULL
);

GRANT SELECT, INSERT ON seal TO hydracore_app;
