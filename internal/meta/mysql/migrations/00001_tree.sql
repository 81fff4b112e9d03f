-- +goose Up

-- A server does not take such statements back: what was cut short runs again.

CREATE TABLE IF NOT EXISTS fence (
  id      TINYINT UNSIGNED NOT NULL PRIMARY KEY,
  cluster VARCHAR(64) CHARACTER SET ascii NOT NULL,
  epoch   BIGINT UNSIGNED NOT NULL,
  seq     BIGINT UNSIGNED NOT NULL,
  time_ns BIGINT NOT NULL
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS inodes (
  id          BIGINT UNSIGNED NOT NULL PRIMARY KEY,
  type        TINYINT UNSIGNED NOT NULL,
  mode        SMALLINT UNSIGNED NOT NULL,
  uid         INT UNSIGNED NOT NULL,
  gid         INT UNSIGNED NOT NULL,
  size        BIGINT UNSIGNED NOT NULL,
  nlink       INT UNSIGNED NOT NULL,
  atime_ns    BIGINT NOT NULL,
  mtime_ns    BIGINT NOT NULL,
  ctime_ns    BIGINT NOT NULL,
  rdev        INT UNSIGNED NOT NULL,
  parent      BIGINT UNSIGNED NOT NULL,
  version     BIGINT UNSIGNED NOT NULL,
  next_cookie BIGINT UNSIGNED NOT NULL,
  target      VARBINARY(4095) NOT NULL,
  xattrs      INT UNSIGNED NOT NULL,
  deadline_ns BIGINT NOT NULL,
  purging     BOOLEAN NOT NULL,
  stored      BIGINT UNSIGNED NOT NULL
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS entries (
  parent        BIGINT UNSIGNED NOT NULL,
  cookie        BIGINT UNSIGNED NOT NULL,
  name          VARBINARY(255) NOT NULL,
  inode         BIGINT UNSIGNED NOT NULL,
  type          TINYINT UNSIGNED NOT NULL,
  origin_parent BIGINT UNSIGNED NULL,
  origin_name   VARBINARY(255) NULL,
  removed_ns    BIGINT NULL,
  PRIMARY KEY (parent, cookie),
  UNIQUE KEY by_parent_name (parent, name),
  KEY by_name (name),
  KEY by_inode (inode)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS chunks (
  inode   BIGINT UNSIGNED NOT NULL,
  chunk   INT UNSIGNED NOT NULL,
  bytes   MEDIUMBLOB NOT NULL,
  slices  INT UNSIGNED NOT NULL,
  layout  MEDIUMBLOB NOT NULL,
  PRIMARY KEY (inode, chunk)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS xattrs (
  inode BIGINT UNSIGNED NOT NULL,
  name  VARBINARY(255) NOT NULL,
  value MEDIUMBLOB NOT NULL,
  PRIMARY KEY (inode, name)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS counters (
  name  VARCHAR(16) CHARACTER SET ascii NOT NULL PRIMARY KEY,
  value BIGINT NOT NULL
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS results (
  session BIGINT UNSIGNED NOT NULL,
  seq     BIGINT UNSIGNED NOT NULL,
  result  MEDIUMBLOB NOT NULL,
  PRIMARY KEY (session, seq)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS owners (
  id   INT UNSIGNED NOT NULL PRIMARY KEY,
  name VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL
) ENGINE=InnoDB;

DROP FUNCTION IF EXISTS koinon_path;

-- +goose StatementBegin
CREATE FUNCTION koinon_path(dir BIGINT UNSIGNED, leaf VARBINARY(255)) RETURNS MEDIUMBLOB
READS SQL DATA
BEGIN
  DECLARE path MEDIUMBLOB DEFAULT CONCAT('/', leaf);
  DECLARE step VARBINARY(255);
  DECLARE up BIGINT UNSIGNED;
  DECLARE depth INT DEFAULT 0;
  WHILE dir <> 1 AND depth < 4096 DO
    SET step = NULL;
    SELECT name, parent INTO step, up FROM entries WHERE inode = dir AND type = 4 LIMIT 1;
    IF step IS NULL THEN
      RETURN NULL;
    END IF;
    SET path = CONCAT('/', step, path), dir = up, depth = depth + 1;
  END WHILE;
  RETURN path;
END;
-- +goose StatementEnd

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

-- +goose Down

DROP VIEW files;
DROP FUNCTION koinon_path;
DROP TABLE owners;
DROP TABLE results;
DROP TABLE counters;
DROP TABLE xattrs;
DROP TABLE chunks;
DROP TABLE entries;
DROP TABLE inodes;
DROP TABLE fence;
