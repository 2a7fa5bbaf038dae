// SPDX-License-Identifier: Apache-2.0

package guarantees_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/shuntnet/shunt/internal/kernel"
)

// agentEnv in the environment turns this binary into an agent.
const agentEnv = "SHUNT_TEST_AGENT"

func TestMain(m *testing.M) {
	if os.Getenv(agentEnv) != "" {
		serveAgent()
		return
	}
	os.Exit(m.Run())
}

// need skips where the machine cannot run the tests, or fails if none may be skipped.
func need(t *testing.T) {
	t.Helper()
	reason := ""
	if os.Geteuid() != 0 {
		reason = "needs root"
	} else if _, err := kernel.Cgroup2(); err != nil {
		reason = err.Error()
	}
	switch {
	case reason == "":
	case os.Getenv("SHUNT_REQUIRE_ALL") == "1":
		t.Fatalf("SHUNT_REQUIRE_ALL=1, but this test %s", reason)
	default:
		t.Skip(reason)
	}
}

const (
	period   = 1048573   // a prime: chunks of round sizes never fall on the same bytes again
	maxChunk = 256 << 10 // the longest piece of a stream that fill and check take
)

// noise repeats every period bytes; what follows saves wrapping around.
var noise = func() []byte {
	b := make([]byte, period+maxChunk)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range period {
		b[i] = byte(random.Uint32())
	}
	copy(b[period:], b)
	return b
}()

// piece is the part of a stream at offset: every stream has bytes of its own.
func piece(stream uint64, offset int64, n int) []byte {
	at := (stream*999983 + uint64(offset)) % period
	return noise[at : at+uint64(n)]
}

// check says where received bytes differ from the stream, and what they are.
func check(stream uint64, offset int64, got []byte) error {
	want := piece(stream, offset, len(got))
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for got[at] == want[at] {
		at++
	}
	what := "bytes of another stream"
	if n := len(got) - at; n >= 8 {
		if i := bytes.Index(noise, got[at:at+8]); i >= 0 {
			from := (int64(i) - int64(stream*999983%period) + 2*period) % period
			what = fmt.Sprintf("what this stream has at %d (modulo %d)", from, period)
		}
	}
	return fmt.Errorf("stream %d wrong from offset %d on: %s", stream, offset+int64(at), what)
}
