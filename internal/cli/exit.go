// SPDX-License-Identifier: Apache-2.0

package cli

import "fmt"

// ExitError is an error that asks for an exit status.
type ExitError struct {
	Code int   // 1: error, 2: differs or would change; run passes on the command's own
	Err  error // nil: everything was said already, print nothing
}

// Error describes the cause, or the status where there is nothing to print.
func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap returns the cause, nil where there is nothing to print.
func (e *ExitError) Unwrap() error { return e.Err }
