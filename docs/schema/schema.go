// SPDX-License-Identifier: Apache-2.0

// Package schema is the published JSON Schema of the configuration file. It
// lies beside the documentation, where editors are pointed at it, and is a
// package so that the binary can print it.
package schema

import _ "embed"

// JSON is the schema, draft 2020-12.
//
//go:embed shunt.schema.json
var JSON []byte
