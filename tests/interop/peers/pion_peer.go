// pion/ice, speaking the lines of icecat: controlling|controlled ADDRESS.
package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/pion/ice/v2"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// The TURN server that the environment names, if any.
func relays() []*ice.URL {
	server := os.Getenv("INTEROP_TURN")
	if server == "" {
		return nil
	}
	url, err := ice.ParseURL("turn:" + server + "?transport=udp")
	check(err)
	url.Username, url.Password = os.Getenv("INTEROP_TURN_USER"), os.Getenv("INTEROP_TURN_PASSWORD")
	return []*ice.URL{url}
}

func main() {
	controlling, address := os.Args[1] == "controlling", os.Args[2]
	agent, err := ice.NewAgent(&ice.AgentConfig{
		Urls:         relays(),
		NetworkTypes: []ice.NetworkType{ice.NetworkTypeUDP4},
		IPFilter:     func(ip net.IP) bool { return ip.String() == address },
	})
	check(err)
	gathered := make(chan struct{})
	check(agent.OnCandidate(func(c ice.Candidate) {
		if c == nil {
			close(gathered)
			return
		}
		fmt.Println("cand", c.Marshal())
	}))
	ufrag, pwd, err := agent.GetLocalUserCredentials()
	check(err)
	fmt.Println("ufrag", ufrag)
	fmt.Println("pwd", pwd)
	check(agent.GatherCandidates())
	<-gathered
	fmt.Println("end")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() && input.Text() != "end" {
		word, rest, _ := strings.Cut(input.Text(), " ")
		switch word {
		case "ufrag":
			ufrag = rest
		case "pwd":
			pwd = rest
		case "cand":
			c, err := ice.UnmarshalCandidate(rest)
			check(err)
			check(agent.AddRemoteCandidate(c))
		}
	}
	var connection *ice.Conn
	if controlling {
		connection, err = agent.Dial(context.Background(), ufrag, pwd)
	} else {
		connection, err = agent.Accept(context.Background(), ufrag, pwd)
	}
	check(err)
	fmt.Println("state connected")
	go func() {
		buffer := make([]byte, 65535)
		for {
			n, err := connection.Read(buffer)
			check(err)
			fmt.Println("data", string(buffer[:n]))
		}
	}()
	for input.Scan() {
		_, err := connection.Write(input.Bytes())
		check(err)
	}
}
