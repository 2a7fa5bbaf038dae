// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// seriesOf reads the values of one instance, by the rest of the series' name.
func seriesOf(t *testing.T, text, instance string) map[string]float64 {
	t.Helper()
	label := fmt.Sprintf("shunt_instance=%q", instance)
	series := map[string]float64{}
	for l := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(l), "} ")
		if !ok || !strings.Contains(name, label) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		series[strings.Replace(name, label, "", 1)] = v
	}
	return series
}

// Over HTTP and as text, while a run runs: both are what status says, and the
// values are those of the traffic.
func TestMetricsDuringARun(t *testing.T) {
	require(t)
	p, d, s := talking(t)
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	exporter := command(t, shunt, "metrics", "--listen", address).start(t)
	get := func(path string) (string, error) {
		r, err := http.Get("http://" + address + path)
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err == nil && r.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", r.Status, b)
		}
		return string(b), err
	}
	eventually(t, "shunt metrics answers", func() bool {
		body, err := get("/healthz")
		return err == nil && body == "ok\n"
	})
	for n := 1; n <= 3; n++ {
		d.say("go")
		d.expect(fmt.Sprintf("exchange %d done", n))
		text, err := get("/metrics")
		if err != nil {
			t.Fatal(err)
		}
		// It may fail for another shunt's instance, of another version.
		printed := command(t, shunt, "metrics", "-o", "text")
		if status := printed.run(t); status != 0 && strings.Contains(printed.err.String(), s.name) {
			t.Fatalf("%s: %s", describe(status), &printed.err)
		}
		byHTTP, once := seriesOf(t, text, s.name), seriesOf(t, printed.out.String(), s.name)
		for _, got := range []map[string]float64{byHTTP, once} {
			var messages, bytes float64
			for name, v := range got {
				switch {
				case strings.HasPrefix(name, "shunt_accel_stack_messages_total{"), strings.HasPrefix(name, "shunt_accel_redirected_messages_total{"):
					messages += v
				case strings.HasPrefix(name, "shunt_accel_stack_bytes_total{"), strings.HasPrefix(name, "shunt_accel_redirected_bytes_total{"):
					bytes += v
				}
			}
			if sent := float64(2 * n * talkMessages); messages != sent || bytes != sent*clientSize {
				t.Errorf("%v messages, %v bytes; sent were %v messages of %d", messages, bytes, sent, clientSize)
			}
			for name, want := range map[string]float64{
				"shunt_accel_joined_total{":      1,
				"shunt_accel_connections_total{": 1,
				"shunt_accel_sockets{":           2,
				"shunt_accel_owned{":             1,
				"shunt_accel_queue_bound_bytes{": 4 << 20,
			} {
				if v, there := got[name]; !there || v != want {
					t.Errorf("%s is %v, want %v", name, v, want)
				}
			}
		}
	}
	d.end()
	if status := p.wait(t); status != 0 {
		t.Errorf("%s: %s", describe(status), &p.err)
	}
	text, err := get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	if left := seriesOf(t, text, s.name); len(left) > 0 {
		t.Errorf("after the run: %v", left)
	}

	refused(t, command(t, shunt, "metrics", "--listen", address), address, "address already in use")
	refused(t, command(t, shunt, "metrics", "--listen", address, "-o", "text"), "--listen", "-o text")
	if err := exporter.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := exporter.wait(t); status != 0 {
		t.Errorf("shunt metrics after SIGTERM: %s: %s", describe(status), &exporter.err)
	}
}

// The guarantee's word is as good as its number, and a size may have a unit.
func TestWordsAndUnits(t *testing.T) {
	require(t)
	flags := []string{"--accept", "reader,RESET", "--max-queue", "1MiB"}
	_, s := acceleratedWith(t, flags, helperCommand("echo", "-messages=10")...)
	if s.Accel.Joined != 1 || s.Accel.Stack["reader-unproven"].Messages != 0 {
		t.Errorf("%+v", s.Accel)
	}
}
