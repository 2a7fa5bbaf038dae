#!/bin/bash
# Measures redis and nginx as they are and under shunt run, in turn, and prints
# medians and their ratio. As root: bench/programs.sh [SHUNT [ROUNDS]]; about
# 3 minutes for 5 rounds.
set -euo pipefail

shunt=$(realpath "${1:-bin/shunt}")
rounds=${2:-5}
requests=200000 # of redis-benchmark, a quarter of it where one client waits for each answer
seconds=3       # of wrk
limit=60        # seconds for one measurement, which takes 1 to 10

die() { echo "programs.sh: $*" >&2; exit 1; }

((EUID == 0)) || die "needs root, to run shunt"
for program in "$shunt" redis-server redis-benchmark nginx wrk taskset timeout; do
	command -v "$program" >/dev/null || die "needs $program"
done

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/files"
head -c 1024 /dev/zero | tr '\0' x >"$dir/files/small"

# port prints one that nobody uses, below the range that the kernel hands out.
port() {
	local p=$((20000 + RANDOM % 10000))
	while (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null; do p=$((p + 1)); done
	echo "$p"
}

# One file for each workload: starts its server, measures, prints a rate, ends the server.
cat >"$dir/lib" <<-'END'
	set -euo pipefail
	serve() { # PORT COMMAND…: returns when it listens, ends it with the script
		local tries
		"${@:2}" &
		server=$!
		trap 'kill $server && wait $server' EXIT
		for ((tries = 0; tries < 1000; tries++)); do
			kill -0 $server || return 1
			if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
			sleep 0.01
		done
		echo "nobody listens on port $1" >&2
		return 1
	}
END
cat >"$dir/redis" <<-'END'
	# DIR PORT redis-benchmark's arguments
	source "$1/lib"
	serve "$2" redis-server --bind 127.0.0.1 --port "$2" --save "" --appendonly no --dir "$1" --logfile "$1/log"
	redis-benchmark -h 127.0.0.1 -p "$2" --csv -t get "${@:3}" | awk -F'"' '$2 == "GET" { print $4 }'
END
cat >"$dir/nginx" <<-'END'
	# DIR PORT SECONDS
	source "$1/lib"
	serve "$2" nginx -p "$1" -c "$1/nginx.conf" -e "$1/log" -g "daemon off; pid $1/pid;"
	wrk -t1 -c32 -d"$3s" "http://127.0.0.1:$2/small" >"$1/wrk"
	if grep -E 'Socket errors|Non-2xx' "$1/wrk" >&2; then exit 1; fi
	awk '$1 == "Requests/sec:" { print $2 }' "$1/wrk"
END

web=$(port)
cat >"$dir/nginx.conf" <<-END
	worker_processes 1;
	user root;
	events { worker_connections 256; }
	http {
		access_log off;
		client_body_temp_path $dir/t1;
		proxy_temp_path $dir/t2;
		fastcgi_temp_path $dir/t3;
		uwsgi_temp_path $dir/t4;
		scgi_temp_path $dir/t5;
		keepalive_requests 100000000;
		server { listen 127.0.0.1:$web; root $dir/files; }
	}
END

# measure plain|shunt one|all COMMAND… prints requests per second.
measure() {
	local prefix=()
	[[ $2 == all ]] || prefix+=(taskset -c 0)
	[[ $1 == plain ]] || prefix+=("$shunt" run -q --json "$dir/summary" --)
	timeout "$limit" "${prefix[@]}" bash "${@:3}" || return
	[[ $1 == plain ]] || joined || { echo "nothing was joined" >&2; return 1; }
}

joined() { grep -q '"joined": [1-9]' "$dir/summary"; }

median() { sort -n | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

# row NAME CPUS COMMAND… prints one line of the table.
row() {
	local i way rate p s
	rm -f "$dir/plain.rates" "$dir/shunt.rates"
	for ((i = 0; i < rounds; i++)); do
		for way in plain shunt; do
			rate=$(measure "$way" "$2" "${@:3}") || die "$1 ($way) failed"
			[[ $rate ]] || die "$1 ($way): no rate"
			echo "$rate" >>"$dir/$way.rates"
		done
	done
	p=$(median <"$dir/plain.rates")
	s=$(median <"$dir/shunt.rates")
	printf '%-28s %-4s %12.0f %12.0f %6.2f   %s\n' "$1" "$2" "$p" "$s" "$(ratio "$s" "$p")" "$(spread)"
}

ratio() { awk -v a="$1" -v b="$2" 'BEGIN { print a / b }'; }

# spread: lowest and highest ratio of two neighbours in time.
spread() {
	paste "$dir/shunt.rates" "$dir/plain.rates" | awk '{ print $1 / $2 }' | sort -n |
		awk '{ v[NR] = $1 } END { printf "%.2f-%.2f", v[1], v[NR] }'
}

printf '%-28s %-4s %12s %12s %6s   %s\n' "requests per second" CPUs plain shunt ratio spread
for cpus in all one; do
	row "redis GET -c 50" $cpus "$dir/redis" "$dir" "$(port)" -c 50 -n $requests
	row "redis GET -c 50 -P 16" $cpus "$dir/redis" "$dir" "$(port)" -c 50 -n $((requests * 5)) -P 16
	row "redis GET -c 1" $cpus "$dir/redis" "$dir" "$(port)" -c 1 -n $((requests / 4))
	row "nginx 1 KiB, wrk -c32" $cpus "$dir/nginx" "$dir" "$web" $seconds
done
