// SPDX-License-Identifier: Apache-2.0

package lifecycle_test

func takeSteps() {}
