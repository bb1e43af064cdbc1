-- How much is kept, in one row, so that nobody has to count it. Bytes are those of the text that people and models wrote:
-- of projects, conversations, messages that are complete, and system prompts as they were sent.

CREATE TABLE usage (
    one              BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    messages         BIGINT NOT NULL,
    bytes            BIGINT NOT NULL
);
INSERT INTO usage (one, messages, bytes) SELECT 1,
    (SELECT count(*) FROM messages),
    (SELECT coalesce(sum(octet_length(content) + coalesce(octet_length(blocks), 0)), 0) FROM messages
        WHERE state NOT IN ('streaming', 'waiting')) +
    (SELECT coalesce(sum(octet_length(title) + octet_length(description) + octet_length(system) + octet_length(settings) +
        octet_length(tags)), 0) FROM conversations) +
    (SELECT coalesce(sum(octet_length(name) + octet_length(description) + octet_length(instructions) +
        octet_length(settings) + octet_length(tags)), 0) FROM projects) +
    (SELECT coalesce(sum(octet_length(body)), 0) FROM systems);
