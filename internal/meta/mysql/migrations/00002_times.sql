-- +goose Up

-- FROM_UNIXTIME knows 1970 to 2038. Other times are moved there by multiples of
-- 28 years, 10227 days of 86400 s, and back as dates: until 2100 those have the
-- same days of the week, by which summer times go.

CREATE OR REPLACE SQL SECURITY INVOKER VIEW files AS
SELECT i.id AS id, e.name AS name, e.parent AS parent, i.size AS size,
  COALESCE(o.name, CAST(i.uid AS CHAR CHARACTER SET utf8mb4)) AS owner,
  i.uid AS owner_id, i.gid AS group_id, LPAD(CONV(i.mode, 10, 8), 4, '0') AS mode,
  CASE i.type WHEN 1 THEN 'fifo' WHEN 2 THEN 'char' WHEN 4 THEN 'dir' WHEN 6 THEN 'block'
    WHEN 8 THEN 'file' WHEN 10 THEN 'symlink' WHEN 12 THEN 'socket' ELSE 'unknown' END AS type,
  FROM_UNIXTIME(i.mtime_ns / 1000000000 - 883612800 * CASE WHEN i.mtime_ns < 0 THEN i.mtime_ns DIV 883612800000000000 - 1
    WHEN i.mtime_ns < 2147483647000000000 THEN 0 ELSE (i.mtime_ns - 1263870847000000000) DIV 883612800000000000 END)
    + INTERVAL 10227 * CASE WHEN i.mtime_ns < 0 THEN i.mtime_ns DIV 883612800000000000 - 1
    WHEN i.mtime_ns < 2147483647000000000 THEN 0 ELSE (i.mtime_ns - 1263870847000000000) DIV 883612800000000000 END DAY AS mtime,
  FROM_UNIXTIME(i.ctime_ns / 1000000000 - 883612800 * CASE WHEN i.ctime_ns < 0 THEN i.ctime_ns DIV 883612800000000000 - 1
    WHEN i.ctime_ns < 2147483647000000000 THEN 0 ELSE (i.ctime_ns - 1263870847000000000) DIV 883612800000000000 END)
    + INTERVAL 10227 * CASE WHEN i.ctime_ns < 0 THEN i.ctime_ns DIV 883612800000000000 - 1
    WHEN i.ctime_ns < 2147483647000000000 THEN 0 ELSE (i.ctime_ns - 1263870847000000000) DIV 883612800000000000 END DAY AS ctime,
  koinon_path(e.parent, e.name) AS path
FROM entries e JOIN inodes i ON i.id = e.inode LEFT JOIN owners o ON o.id = i.uid
WHERE e.parent <> 2;

-- +goose Down

CREATE OR REPLACE SQL SECURITY INVOKER VIEW files AS
SELECT i.id AS id, e.name AS name, e.parent AS parent, i.size AS size,
  COALESCE(o.name, CAST(i.uid AS CHAR CHARACTER SET utf8mb4)) AS owner,
  i.uid AS owner_id, i.gid AS group_id, LPAD(CONV(i.mode, 10, 8), 4, '0') AS mode,
  CASE i.type WHEN 1 THEN 'fifo' WHEN 2 THEN 'char' WHEN 4 THEN 'dir' WHEN 6 THEN 'block'
    WHEN 8 THEN 'file' WHEN 10 THEN 'symlink' WHEN 12 THEN 'socket' ELSE 'unknown' END AS type,
  FROM_UNIXTIME(i.mtime_ns / 1000000000) AS mtime, FROM_UNIXTIME(i.ctime_ns / 1000000000) AS ctime,
  koinon_path(e.parent, e.name) AS path
FROM entries e JOIN inodes i ON i.id = e.inode LEFT JOIN owners o ON o.id = i.uid
WHERE e.parent <> 2;
